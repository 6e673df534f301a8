"""A model that does not use the cache that it is given is found when it is loaded, by a few tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from kvswap.core.errors import Incompatible
from kvswap.model.families import text_of
from kvswap.model.load import load_model
from kvswap.model.probing import check_cache
from kvswap.model.states import keeps_states
from tests import families as tiny_families

COMMON: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MLA = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
MOE = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1}
GOOD: dict[str, dict[str, Any]] = {
    "LlamaConfig": {},
    "Qwen2Config": {},
    "Qwen3Config": {"head_dim": 16},
    "Gemma3TextConfig": {"head_dim": 16, "sliding_window": 24},
    "MistralConfig": {"sliding_window": 2},
    "MixtralConfig": {"num_local_experts": 4},
    "Phi3Config": {},
    "Cohere2Config": {"sliding_window": 16},
    "GPTNeoXConfig": {},
    "GPT2Config": {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 512},
    "OPTConfig": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "DeepseekV3Config": {**MLA, **MOE, "num_key_value_heads": 4, "first_k_dense_replace": 1},
    "FalconConfig": {"alibi": False},
    "StableLmConfig": {},
    "Starcoder2Config": {},
}


def tiny(kind: str, changes: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**(COMMON | changes))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(GOOD))
def test_models_that_use_their_cache_pass(kind: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        check_cache(tiny(kind, GOOD[kind], seed).to(dtype))


def test_one_layer_is_enough() -> None:
    check_cache(tiny("LlamaConfig", {"num_hidden_layers": 1}))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("RwkvConfig", {"attention_hidden_size": 64}),
        ("MambaConfig", {}),
        ("FalconMambaConfig", {}),
        ("RecurrentGemmaConfig", {"lru_width": 64, "attention_window_size": 64}),
    ],
)
def test_families_that_keep_another_state_are_refused(kind: str, changes: dict[str, Any]) -> None:
    if not hasattr(transformers, kind):
        pytest.skip("not in this transformers")
    model = tiny(kind, changes)
    with pytest.raises(Incompatible) as caught:
        check_cache(model)
    assert caught.value.exit_code == 7


def drops(model: Any) -> None:
    """Makes a cache of its own, whatever it is given."""
    right = model.forward
    model.forward = lambda *args, past_key_values=None, **named: right(*args, **named)


def fills_a_copy(model: Any) -> None:
    right = model.forward

    def forward(*args: Any, past_key_values: Any = None, **named: Any) -> Any:
        return right(*args, past_key_values=DynamicCache(config=model.config), **named)

    model.forward = forward


def returns_another(model: Any) -> None:
    right = model.forward

    def forward(*args: Any, **named: Any) -> Any:
        out = right(*args, **named)
        out.past_key_values = DynamicCache(config=model.config)
        return out

    model.forward = forward


def looks_at_new_tokens_only(model: Any) -> None:
    """Fills the cache, and does not read what was in it."""
    for layer in model.model.layers:
        attention = layer.self_attn
        right = attention.forward

        def forward(*args: Any, right: Any = right, past_key_values: Any = None, **named: Any) -> Any:
            class Own:
                def update(self, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
                    past_key_values.update(key, value, *rest, **more)
                    return key, value

            named["attention_mask"] = None
            return right(*args, past_key_values=Own(), **named)

        attention.forward = forward


def fills_one_layer_only(model: Any) -> None:
    attention = model.model.layers[2].self_attn
    right = attention.forward
    attention.forward = lambda *args, past_key_values=None, **named: right(*args, past_key_values=None, **named)


def forgets_where_it_is(model: Any) -> None:
    """Counts positions from 0 at every call."""
    right = model.forward

    def forward(*args: Any, position_ids: Any = None, **named: Any) -> Any:
        return right(*args, position_ids=position_ids - position_ids[:, :1], **named)

    model.forward = forward


@pytest.mark.parametrize(
    "way", [drops, fills_a_copy, returns_another, looks_at_new_tokens_only, fills_one_layer_only, forgets_where_it_is]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_ignores_it_is_refused_when_it_is_loaded(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, way: Any, dtype: str
) -> None:
    from kvswap.model import opening

    right = opening.open_model

    def changed(*args: Any) -> Any:
        model, tokenizer = right(*args)
        way(model)
        return model, tokenizer

    monkeypatch.setattr(opening, "open_model", changed)
    with pytest.raises(Incompatible) as caught:
        load_model(tiny_models["llama"], "m", dtype)
    assert caught.value.exit_code == 7 and "cache" in caught.value.message


def test_a_table_that_depends_on_the_length_in_an_unknown_way_is_refused() -> None:
    model = tiny("LlamaConfig", {})
    right = model.model.rotary_emb.forward

    def forward(x: Any, position_ids: Any) -> Any:
        return right(x, position_ids.float() / (1 + (position_ids.max() > 200)))

    model.model.rotary_emb.forward = forward
    with pytest.raises(Incompatible, match="length|long"):
        check_cache(model)


HYBRIDS = [
    name
    for name, (kind, fields) in tiny_families.FAMILIES.items()
    if keeps_states(text_of(getattr(transformers, kind)(**fields).to_dict()))
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in HYBRIDS if name != "zaya"])  # whose keys begin as zeros
def test_hybrids_go_on_from_their_states(name: str, dtype: torch.dtype) -> None:
    kind, fields = tiny_families.FAMILIES[name]
    config = getattr(transformers, kind)(**fields)
    causal, pictures = AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    for seed in range(2):
        torch.manual_seed(seed)
        model = (causal if type(config) in causal._model_mapping else pictures).from_config(config).eval()
        check_cache(model.to(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(tiny_families.FORGETTING))
def test_a_model_that_forgets_its_state_is_refused(name: str, dtype: str, tmp_path: Path) -> None:
    """Its blocks are not the document's, though every comparison with the same blocks would be equal."""
    with pytest.raises(Incompatible, match="empty recurrent state"):
        load_model(tiny_families.build(tmp_path / name, name), name, dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
    ids = torch.tensor([[5, 9, 7, 11, 3, 8] * 4])
    cache = DynamicCache(config=model.config)
    for part in ids.split(6, dim=1):
        blocks = model(part, past_key_values=cache).logits[0, -1].float()
    whole = model(ids).logits[0, -1].float()
    assert (blocks - whole).abs().max() > 1e-3 * (whole.max() - whole.min())
