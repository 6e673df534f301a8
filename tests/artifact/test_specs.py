from __future__ import annotations

import pytest

from kvswap.artifact.layout import plan_groups
from kvswap.artifact.specs import LayerSpec, Layout, TensorSpec, layer_words

KEYS = LayerSpec.key_value("full", 2, 8, 4)
STATE = LayerSpec(
    "state", (TensorSpec("conv.0", "checkpoint", (6, 3)), TensorSpec("recurrent.0", "checkpoint", (2, 4, 5), "float32"))
)
BOTH = LayerSpec("full+state", (*KEYS.tensors, *STATE.tensors))


@pytest.mark.parametrize(
    ("shape", "per", "part"),
    [
        ((2, 8), "token", (2, 7, 8)),
        ((8,), "token", (1, 7, 8)),
        ((5,), "checkpoint", (1, 1, 5)),
        ((6, 3), "checkpoint", (1, 6, 3)),
        ((2, 4, 5), "checkpoint", (2, 4, 5)),
    ],
)
def test_every_tensor_is_heads_rows_and_dim(shape: tuple[int, ...], per: str, part: tuple[int, ...]) -> None:
    assert TensorSpec("t", per, shape).part_shape(7) == part  # type: ignore[arg-type]


def test_layers_know_what_they_keep() -> None:
    assert KEYS.is_key_value and not KEYS.has_states and KEYS.token_numbers == 24
    assert not STATE.is_key_value and STATE.has_states and STATE.token_numbers == 0
    assert not BOTH.is_key_value and BOTH.has_states and BOTH.token_numbers == 24
    assert not LayerSpec("full", (*KEYS.tensors, TensorSpec("index", "token", (8,)))).is_key_value
    assert layer_words(KEYS) == "full, 2 x 8 and 4"
    assert layer_words(STATE) == "state, conv.0 6 x 3, recurrent.0 2 x 4 x 5"


def test_groups_share_a_dtype_and_rows_and_know_their_tensors() -> None:
    layers = [STATE, BOTH, KEYS, KEYS, STATE]
    layout = Layout("bfloat16", "", "", layers, plan_groups(layers, "bfloat16", 16), [16])
    found = [(layout.group_dtype(g), layout.is_state(g), layout.members[g]) for g in range(len(layout.groups))]
    assert found == [
        ("bfloat16", True, [(0, 0), (4, 0)]),
        ("float32", True, [(0, 1), (4, 1)]),
        ("bfloat16", False, [(1, 0), (1, 1)]),
        ("bfloat16", True, [(1, 2)]),
        ("float32", True, [(1, 3)]),
        ("bfloat16", False, [(2, 0), (2, 1), (3, 0), (3, 1)]),
    ]
    assert layout.has_states and not layout.keeps_all
