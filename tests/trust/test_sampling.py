from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvswap.trust.sampling import coverage, draw

SEEDS = st.binary(min_size=32, max_size=32)


@given(SEEDS, st.integers(1, 5000), st.integers(1, 300))
def test_one_position_from_each_stretch(seed: bytes, tokens: int, samples: int) -> None:
    positions = draw(seed, b"id", tokens, samples)
    count = min(samples, tokens)
    assert len(positions) == count == len(set(positions)) and positions == sorted(positions)
    for i, position in enumerate(positions):
        assert i * tokens // count <= position < (i + 1) * tokens // count


@given(SEEDS, SEEDS)
def test_positions_follow_from_the_seed_and_the_artifact(one: bytes, other: bytes) -> None:
    assert draw(one, b"a", 5000, 32) == draw(one, b"a", 5000, 32)
    assert draw(one, b"a", 5000, 32) != draw(one, b"b", 5000, 32)
    if one != other:
        assert draw(one, b"a", 5000, 32) != draw(other, b"a", 5000, 32)


def test_coverage_is_what_drawing_gives_where_it_is_least() -> None:
    """Against counting: a span of 16 that lies half in one stretch of 32 and half in the next."""
    span = range(8 * 32 - 8, 8 * 32 + 8)
    seen = sum(any(p in span for p in draw(n.to_bytes(32, "big"), b"", 1024, 32)) for n in range(4000))
    assert abs(seen / 4000 - coverage(1024, 32, 16)) < 0.03


@given(st.integers(1, 4000), st.integers(1, 400), st.integers(1, 400), st.integers(1, 50))
def test_coverage_grows_with_readers_and_spans(tokens: int, samples: int, changed: int, readers: int) -> None:
    chance = coverage(tokens, samples, changed, readers)
    assert 0 <= chance <= 1
    assert coverage(tokens, samples, changed + 1, readers) >= chance - 1e-12
    assert coverage(tokens, samples, changed, readers + 1) >= chance - 1e-12
