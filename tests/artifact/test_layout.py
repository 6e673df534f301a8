from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.artifact import layout
from kvswap.artifact.specs import LayerSpec
from kvswap.core.errors import Incompatible, UsageError
from tests.support import FULL, SLIDING, identity, make_artifact

SPECS = st.lists(
    st.builds(
        lambda heads, dim, window: LayerSpec.key_value("sliding" if window else "full", heads, dim, dim, window),
        st.integers(1, 4),
        st.integers(1, 64),
        st.none() | st.integers(2, 40),
    ),
    min_size=1,
    max_size=12,
)


@given(SPECS, st.integers(1, 64))
def test_runs_partition_the_layers_by_kind(specs: list[LayerSpec], block: int) -> None:
    runs = [group.layers for group in layout.plan_groups(specs, "bfloat16", block)]
    assert sorted(i for run in runs for i in run) == list(range(len(specs)))
    for run in runs:
        assert len({specs[i] for i in run}) == 1


@given(st.integers(1, 200), st.integers(1, 32), st.integers(2, 60), st.integers(0, 10))
def test_the_chunks_a_reader_needs_cover_what_the_layer_holds(tokens: int, block: int, window: int, at: int) -> None:
    """For a sliding layer, at the document's end and at every block boundary."""
    spec = LayerSpec.key_value("sliding", 1, 1, 1, window)
    blocks = layout.block_count(tokens, block)
    stop = tokens if at >= blocks else min(tokens, (at + 1) * block)
    first, last = layout.held_span(spec, stop)
    covered: set[int] = set()
    for b in range(blocks):
        start, end = layout.block_span(tokens, block, b)
        if end <= stop and end > first:
            low, high = layout.stored_span(spec, start, end)
            covered |= set(range(low, high))
    assert set(range(first, last)) <= covered


def test_late_readers_skip_what_the_window_has_passed() -> None:
    made = make_artifact(tokens=40, block_tokens=8, specs=(FULL, SLIDING))
    needed = layout.needed(made.manifest)
    blocks_of_sliding = {made.manifest.chunks[i].block for i in needed if made.manifest.chunks[i].run == 1}
    assert blocks_of_sliding == {4}  # a window of 6 keeps 5 tokens: all in the last block
    assert len([i for i in needed if made.manifest.chunks[i].run == 0]) == 5
    partial = layout.needed(made.manifest, 16)
    assert {made.manifest.chunks[i].block for i in partial} == {0, 1}


def test_resuming_inside_a_block_is_refused() -> None:
    made = make_artifact(tokens=20, block_tokens=8)
    for bad in (0, 7, 21, 24):
        with pytest.raises(UsageError):
            layout.needed(made.manifest, bad)


def test_another_model_or_dtype_is_named() -> None:
    made = make_artifact(model=identity("mine"))
    layout.check_compatible(made.manifest, identity("mine").digest, "bfloat16")
    for digest, dtype, field in (
        (identity("other").digest, "bfloat16", "model"),
        (identity("mine").digest, "float32", "dtype"),
    ):
        with pytest.raises(Incompatible) as caught:
            layout.check_compatible(made.manifest, digest, dtype)
        assert caught.value.details["field"] == field
