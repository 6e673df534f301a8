from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kvswap.artifact.manifest import Manifest
from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.core.limits import LIMITS
from kvswap.trust.intervals import drawn, expected, files_of, intervals_of, needs_intervals, too_many_cuts
from tests.counting import counting
from tests.support import make_artifact

FULL = LayerSpec.key_value("full", 2, 4, 4)
STATE = LayerSpec("state", (TensorSpec("recurrent.0", "checkpoint", (2, 4, 4)),))


def manifest(tokens: int, block: int = 64, checkpoints: list[int] | None = None) -> Manifest:
    """A manifest of this shape; a layer of states only where checkpoints are given."""
    made = make_artifact(tokens=64).manifest
    shape = replace(made.layout, layers=[FULL] * len(made.layout.layers))
    shape = replace(shape, checkpoints=sorted({*checkpoints, tokens}) if checkpoints is not None else [])
    if checkpoints is not None:
        shape = replace(shape, layers=[*shape.layers, STATE])
    return replace(made, layout=shape, prefix=replace(made.prefix, tokens=tokens, block_tokens=block))


@given(st.integers(1, 5000), st.sets(st.integers(1, 5000), max_size=60), st.integers(1, 300), st.binary(max_size=8))
def test_intervals_cover_every_token_once_and_are_few(
    tokens: int, points: set[int], samples: int, artifact: bytes
) -> None:
    made = manifest(tokens, checkpoints=[point for point in points if point < tokens])
    every = intervals_of(made)
    assert [i.start for i in every] == [0, *(i.stop for i in every[:-1])] and every[-1].stop == tokens
    assert {i.stop for i in every} <= {*points, tokens}
    assert all(i.tokens >= 64 for i in every[:-1]) and len(every) <= tokens // 64 + 1
    draw = drawn(made, bytes(32), artifact, samples)
    assert set(draw.intervals) <= set(every) and draw.of == len(every)
    assert len(set(draw.intervals)) == len(draw.intervals) == min(len(every), -(-len(every) * samples // 128))
    assert 0 < draw.cost <= 1 and 0 < draw.chance <= 1


def test_each_interval_is_drawn_as_often_as_was_told() -> None:
    made = manifest(640, checkpoints=list(range(64, 640, 64)))
    told = expected(made, 32)
    assert (len(told.intervals), told.of, told.chance) == (3, 10, 0.25) and 0.25 < told.cost <= 0.3
    counts = dict.fromkeys(intervals_of(made), 0)
    for number in range(2000):
        for interval in drawn(made, number.to_bytes(32, "big"), b"", 32).intervals:
            counts[interval] += 1
    assert min(counts.values()) >= 0.9 * told.chance * 2000


def test_where_only_the_end_is_kept_everything_is_computed() -> None:
    only = expected(manifest(5000, checkpoints=[]), 1)
    assert (only.of, only.cost, only.chance) == (1, 1.0, 1.0)


def test_windows_are_resumed_at_blocks_and_what_keeps_all_needs_no_intervals() -> None:
    made = manifest(200)
    assert not needs_intervals(made) and [i.stop for i in intervals_of(made)] == [64, 128, 192, 200]
    slides = [replace(layer, kind="sliding", window=24) for layer in made.layout.layers]
    assert needs_intervals(replace(made, layout=replace(made.layout, layers=slides)))
    assert needs_intervals(manifest(200, checkpoints=[]))


def test_checkpoints_without_number_cost_no_time_and_are_not_computed() -> None:
    count = LIMITS.manifest_blocks - 1
    hostile = manifest(count + 1, block=256, checkpoints=list(range(1, count + 1)))
    draw = expected(hostile, 32)
    assert draw.of <= count // 256 + 1 and draw.cost <= 0.3
    assert files_of(hostile, draw) == files_of(hostile, draw)
    assert "cut short" in too_many_cuts(hostile)
    with counting() as counted:
        expected(hostile, 32)
        files_of(hostile, draw)
        too_many_cuts(hostile)
    assert counted.lines < 300 * count
    assert too_many_cuts(manifest(5000, checkpoints=list(range(48, 5000, 48)))) == ""
