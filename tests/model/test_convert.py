"""A GGUF file becomes the model that it holds: every weight, and the tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvswap.model.convert import gguf_to_safetensors

LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def interleaved(weights: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a rotated projection as GGUF has them: the two halves of each head by turns."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


@pytest.fixture(scope="module")
def original(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["llama"]


@pytest.fixture(scope="module")
def gguf_file(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, written by the format's own library."""
    gguf = pytest.importorskip("gguf")
    import json

    from safetensors.numpy import load_file

    config = json.loads((original / "config.json").read_text())
    weights = load_file(original / "model.safetensors")
    tokenizer = json.loads((original / "tokenizer.json").read_text())["model"]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    words = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if index < 3 else 1 for index in range(len(words))])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    for name, other in (("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")):
        writer.add_tensor(f"{name}.weight", weights[f"{other}.weight"])
    for layer in range(config["num_hidden_layers"]):
        for name, other in LAYERS.items():
            values = weights[f"model.layers.{layer}.{other}.weight"]
            if name in ("attn_q", "attn_k"):
                heads = config["num_attention_heads" if name == "attn_q" else "num_key_value_heads"]
                values = np.ascontiguousarray(interleaved(values, heads))
            writer.add_tensor(f"blk.{layer}.{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_weight_comes_in_the_dtype_that_was_asked_for(
    gguf_file: Path, original: Path, tmp_path: Path, dtype: str
) -> None:
    import torch
    from safetensors.torch import load_file

    gguf_to_safetensors(gguf_file, tmp_path / "made", dtype)
    made, expected = load_file(tmp_path / "made" / "model.safetensors"), load_file(original / "model.safetensors")
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        assert made[name].dtype == getattr(torch, dtype)
        assert torch.equal(made[name], value.to(made[name].dtype)), name


def test_the_tokenizer_comes_along_and_the_result_loads_as_any_model(
    gguf_file: Path, original: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from kvswap.model.identity import directory_identity

    gguf_to_safetensors(gguf_file, tmp_path, "float32")
    ours, theirs = (AutoTokenizer.from_pretrained(str(directory)) for directory in (tmp_path, original))
    text = "Special method names, and a sentence of 12 words: naïve."
    ids = ours.encode(text, add_special_tokens=False)
    assert ids == theirs.encode(text, add_special_tokens=False) and ours.decode(ids) == text
    assert directory_identity(tmp_path, "made").parameters == directory_identity(original, "x").parameters
