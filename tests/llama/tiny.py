"""Tiny GGUF models with random weights: one of full attention, one whose layers slide.  Needs numpy and gguf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

HEAD, WIDTH, FEED = 64, 128, 192
WORDS = 272  # 256 bytes, then what begins, ends, and some more
WINDOW = 32


def _bytes() -> list[str]:
    """The 256 byte tokens of a byte-level vocabulary, as GPT-2 writes them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in shown]
    names = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(rest)}
    return [names[b] for b in range(256)]


def write(path: Path, architecture: str = "llama", *, seed: int = 1, dtype: str = "float16", **settings: Any) -> Path:
    """Write a model; `settings` may have `rope_base`, `layers`, `kv_heads`, `name`, `context`."""
    import gguf

    slides = architecture == "gemma3"
    layers = settings.get("layers", 6 if slides else 2)
    heads = settings.get("kv_heads", 1)
    made = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(settings.get("name", "tiny"))
    writer.add_context_length(settings.get("context", 2048))
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(2 * heads)
    writer.add_head_count_kv(heads)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(settings.get("rope_base", 10_000.0))
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(WORDS)
    if slides:
        writer.add_sliding_window(WINDOW)
    words = _bytes() + ["<s>", "</s>", "<pad>"] + [f"<x{i}>" for i in range(WORDS - 259)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(words)
    writer.add_token_types([1] * 256 + [3] * (WORDS - 256))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_pad_token_id(258)
    writer.add_add_bos_token(True)
    writer.add_chat_template(settings.get("template", TEMPLATE))

    def tensor(name: str, *shape: int, ones: bool = False) -> None:
        values = np.ones(shape) if ones else made.standard_normal(shape) / np.sqrt(shape[-1])
        small = len(shape) == 1
        writer.add_tensor(f"{name}.weight", values.astype(np.float32 if small else dtype))

    tensor("token_embd", WORDS, WIDTH)
    tensor("output_norm", WIDTH, ones=True)
    if not slides:
        tensor("output", WORDS, WIDTH)
    for layer in range(layers):
        tensor(f"blk.{layer}.attn_norm", WIDTH, ones=True)
        tensor(f"blk.{layer}.attn_q", 2 * heads * HEAD, WIDTH)
        tensor(f"blk.{layer}.attn_k", heads * HEAD, WIDTH)
        tensor(f"blk.{layer}.attn_v", heads * HEAD, WIDTH)
        tensor(f"blk.{layer}.attn_output", WIDTH, 2 * heads * HEAD)
        tensor(f"blk.{layer}.ffn_norm", WIDTH, ones=True)
        tensor(f"blk.{layer}.ffn_gate", FEED, WIDTH)
        tensor(f"blk.{layer}.ffn_up", FEED, WIDTH)
        tensor(f"blk.{layer}.ffn_down", WIDTH, FEED)
        if slides:
            tensor(f"blk.{layer}.attn_q_norm", HEAD, ones=True)
            tensor(f"blk.{layer}.attn_k_norm", HEAD, ones=True)
            tensor(f"blk.{layer}.post_attention_norm", WIDTH, ones=True)
            tensor(f"blk.{layer}.post_ffw_norm", WIDTH, ones=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_lora(path: Path, architecture: str = "llama", *, seed: int = 9, layers: int = 2, rank: int = 4) -> Path:
    """Write a LoRA adapter for the queries and keys of a model that `write` wrote."""
    import gguf

    made = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for layer in range(layers):
        for name, rows in (("attn_q", 2 * HEAD), ("attn_k", HEAD)):
            for part, shape in (("lora_a", (rank, WIDTH)), ("lora_b", (rows, rank))):
                values = (made.standard_normal(shape) / 8).astype(np.float32)
                writer.add_tensor(f"blk.{layer}.{name}.weight.{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<x0>{{ m['role'] }}: {{ m['content'] }}<x1>{% endfor %}"
    "{% if add_generation_prompt %}<x0>assistant: {% endif %}"
)
