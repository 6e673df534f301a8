from __future__ import annotations

import math

import pytest

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.checkpoints import SPARSE, block_bytes, spacing, state_bytes, usual_checkpoints
from kvswap.artifact.specs import LayerSpec, TensorSpec

KEYS = LayerSpec.key_value("full", 8, 64, 64)
SHORT = LayerSpec("state", (TensorSpec("conv.0", "checkpoint", (2048, 3)),))
DELTA = LayerSpec("state", (TensorSpec("recurrent.0", "checkpoint", (32, 128, 128), "float32"),))
LFM2 = [SHORT] * 10 + [KEYS] * 6


def test_a_small_state_is_held_in_every_block() -> None:
    """As LFM2-1.2B has it: 0.12 MB beside a block of 3.1 MB."""
    assert state_bytes(LFM2, "bfloat16") == 122_880 and block_bytes(LFM2, "bfloat16", 256) == 256 * 12_288
    assert usual_checkpoints(LFM2, "bfloat16", Blocks(1000, 256)) == [256, 512, 768, 1000]


def test_a_large_state_is_held_so_far_apart_that_it_stays_a_small_part() -> None:
    layers = [DELTA] * 3 + [KEYS]
    every = spacing(layers, "bfloat16", 256)
    assert every == math.ceil(state_bytes(layers, "bfloat16") / (SPARSE * block_bytes(layers, "bfloat16", 256))) > 1
    tokens = 3 * every * 256 + 5
    points = usual_checkpoints(layers, "bfloat16", Blocks(tokens, 256))
    assert points == [every * 256, 2 * every * 256, 3 * every * 256, tokens]
    held = (len(points) - 1) * state_bytes(layers, "bfloat16")
    assert held <= 0.25 * (held + state_bytes(layers, "bfloat16") + tokens * KEYS.token_numbers * 2)


def test_what_is_wanted_is_held_as_well() -> None:
    blocks = Blocks(1000, 256, (300, 700))
    assert usual_checkpoints([DELTA] * 3 + [KEYS], "bfloat16", blocks, (300, 512, 700, 5000)) == [300, 512, 700, 1000]


@pytest.mark.parametrize("wanted", [(), (256,), (256, 512)])
def test_layers_without_states_need_none_at_whole_blocks(wanted: tuple[int, ...]) -> None:
    assert usual_checkpoints([KEYS], "bfloat16", Blocks(1000, 256, wanted), wanted) == []
    assert usual_checkpoints([KEYS], "bfloat16", Blocks(1000, 256, (300,)), (300,)) == [300, 1000]


def test_states_alone_are_held_at_the_end() -> None:
    assert spacing([DELTA], "bfloat16", 256) == 0
    assert usual_checkpoints([DELTA], "bfloat16", Blocks(1000, 256)) == [1000]
