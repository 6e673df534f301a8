"""Which layers keep states, in files as they were published; shapes are compared with built models in test_families."""

from __future__ import annotations

from typing import Any

import pytest

from kvswap.core.errors import Incompatible
from kvswap.model.states import keeps_states, layer_kinds, number, state_tensors

D, F, C, H = "linear_attention", "full_attention", "conv", "hybrid"


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        ({"model_type": "qwen3_next"}, [D, D, D, F] * 2),
        ({"model_type": "qwen3_5_text", "full_attention_interval": 2}, [D, F] * 4),
        ({"model_type": "lfm2", "full_attn_idxs": [2, 5]}, [C, C, F, C, C, F, C, C]),
        ({"model_type": "bamba", "attn_layer_indices": [3]}, [D, D, D, F, D, D, D, D]),
        ({"model_type": "falcon_h1"}, [H] * 8),
        ({"model_type": "granitemoehybrid", "layer_types": ["mamba", "attention"] * 4}, [D, F] * 4),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-*E"}, [D, "mlp", F, "moe"]),
        ({"model_type": "zamba2", "layers_block_type": ["mamba", "hybrid"]}, [D, H]),
        (
            {"model_type": "kimi_linear", "linear_attn_config": {"full_attn_layers": [4, 8], "kda_layers": [1]}},
            [D, D, D, F] * 2,
        ),
        ({"model_type": "mamba2", "layer_types": ["mamba"] * 8}, [D] * 8),
        ({"model_type": "llama"}, None),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else "",
)
def test_files_list_their_layers_in_their_own_ways(config: dict[str, Any], kinds: list[str] | None) -> None:
    assert layer_kinds(config, lambda: 8) == kinds
    assert keeps_states(config) == (kinds is not None)


def test_sizes_of_real_models() -> None:
    qwen = {"model_type": "qwen3_5_moe_text", "linear_num_value_heads": 32, "linear_num_key_heads": 16}
    assert [t.shape for t in state_tensors(qwen, "bfloat16")] == [(8192, 4), (32, 128, 128)]
    assert [t.dtype for t in state_tensors(qwen, "bfloat16")] == [None, "float32"]
    assert [t.dtype for t in state_tensors(qwen, "float32")] == [None, None]
    codestral = {"model_type": "mamba2", "hidden_size": 4096}  # its file's other numbers are the defaults
    assert [t.shape for t in state_tensors(codestral, "bfloat16")] == [(10240, 4), (128, 64, 128)]
    assert [t.shape for t in state_tensors({"model_type": "lfm2", "hidden_size": 2048}, "bfloat16")] == [(2048, 3)]


@pytest.mark.parametrize("wrong", [0, -1, True, "8", 2.0, None])
def test_a_field_that_is_no_number_is_not_taken_for_one(wrong: Any) -> None:
    assert number({"a": wrong, "b": 5}, "a", "b") == 5 and number({"a": wrong}, "a", default=3) == 3
    with pytest.raises(Incompatible, match="none of a"):
        number({"a": wrong}, "a")
