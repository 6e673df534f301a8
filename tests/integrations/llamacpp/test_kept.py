"""The tree of kept conversations: what comes back is what went in, whatever is cut, damaged or evicted."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.errors import IntegrityError
from kvswap.integrations.llamacpp import CacheShape, LayerRows, StateShape
from kvswap.integrations.llamacpp.ggml import F16
from kvswap.integrations.llamacpp.proxy.kept import KeptTree, SlidingRows
from kvswap.integrations.llamacpp.proxy.segments import SEGMENT_TOKENS, read_header, read_segment

CACHE = CacheShape(F16, F16, (8, 4), (4, 8), (0, 0))
SHAPE = StateShape(4, 1, 0, 0, False, True, True, (CACHE,))
SLIDES = StateShape(4, 1, 0, 0, False, True, True, (CACHE, CACHE))
WINDOW = 10


def rows_of(ids: Sequence[int], first: int = 0, salt: int = 0) -> list[LayerRows]:
    """Rows that are a function of all ids up to theirs, as keys and values are."""
    codes = [hash((salt, *ids[: at + 1])) for at in range(first, len(ids))]

    def rows(size: int, layer: int) -> np.ndarray:
        return np.array([[(code >> (at + layer)) & 255 for at in range(size)] for code in codes], np.uint8).reshape(
            -1, size
        )

    return [LayerRows(rows(k, 1), rows(v, 2)) for k, v in zip(CACHE.key_rows, CACHE.value_rows, strict=True)]


def same(ours: Sequence[LayerRows], theirs: Sequence[LayerRows]) -> bool:
    return all(
        np.array_equal(a.keys, b.keys) and np.array_equal(a.values, b.values) for a, b in zip(ours, theirs, strict=True)
    )


def tree(folder: Path, shape: StateShape = SHAPE, quota: int = 10**9) -> KeptTree:
    return KeptTree(folder, "root", shape, quota)


def common(one: Sequence[int], two: Sequence[int]) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


# A vocabulary of two ids makes many shared prefixes.
SEQUENCE = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@settings(max_examples=60)
@given(st.lists(SEQUENCE, min_size=1, max_size=6), SEQUENCE, st.booleans())
def test_the_longest_prefix_is_found_and_comes_back(kept: list[list[int]], asked: list[int], again: bool) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        one = tree(folder)
        for ids in kept:
            one.add(ids, rows_of(ids))
        if again:
            one = tree(folder)
        match = one.match(asked)
        assert match.tokens == match.shared == max(common(ids, asked) for ids in kept)
        if match.tokens:
            assert same(one.read(match)[0], rows_of(asked[: match.tokens]))
        assert one.bytes == sum(path.stat().st_size for path in (folder / "root").iterdir())
        assert all(one.add(ids, rows_of(ids)) == 0 for ids in kept), "what is here is not written again"
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60)
@given(st.lists(st.tuples(SEQUENCE, st.integers(1, WINDOW), st.integers(0, 40)), min_size=1, max_size=5), SEQUENCE)
def test_sliding_layers_are_restored_where_their_window_is_whole(
    kept: list[tuple[list[int], int, int]], asked: list[int]
) -> None:
    """Each conversation has the last rows of its sliding layers, and some of a checkpoint before."""
    folder = Path(tempfile.mkdtemp())
    try:
        one = tree(folder, SLIDES)
        one.note_window(WINDOW)
        for ids, _, at in kept:
            point = ids[: max(1, at % (len(ids) + 1))]
            held = [SlidingRows(max(0, len(p) - WINDOW), rows_of(p, max(0, len(p) - WINDOW), 7)) for p in (ids, point)]
            one.add(ids, rows_of(ids), held)
        match = tree(folder, SLIDES).match(asked)
        assert match.tokens <= match.shared == max(common(ids, asked) for ids, _, _ in kept)
        for ids, _, _ in kept:
            if common(ids, asked) == len(ids):
                assert match.tokens >= len(ids)
        if match.tokens:
            full, sliding = tree(folder, SLIDES).read(match)
            taken = asked[: match.tokens]
            assert same(full, rows_of(taken))
            assert same(sliding, rows_of(taken, max(0, len(taken) - WINDOW), 7))
    finally:
        shutil.rmtree(folder)


def test_a_long_conversation_is_cut_into_segments(tmp_path: Path) -> None:
    one = tree(tmp_path)
    ids = list(range(1000))
    one.add(ids, rows_of(ids))
    longer = [*ids, *range(5000, 5100)]
    assert one.add(longer, rows_of(longer)) < 100 * CACHE.token_bytes + 2_000
    assert one.segments == -(-1000 // SEGMENT_TOKENS) + 1
    for path in (tmp_path / "root").iterdir():
        header, layers = read_segment(path, CACHE)
        assert header == read_header(path) and header.end - header.start <= SEGMENT_TOKENS
        assert len(layers[0].keys) == len(header.ids)


def test_every_damage_of_a_segment_is_noticed(tmp_path: Path) -> None:
    one = tree(tmp_path)
    ids = list(range(20))
    one.add(ids, rows_of(ids))
    (path,) = (tmp_path / "root").iterdir()
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(IntegrityError):
            read_segment(path, CACHE)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(IntegrityError):
            read_segment(path, CACHE)


def test_a_damaged_segment_goes_with_what_continues_it(tmp_path: Path) -> None:
    one = tree(tmp_path)
    ids = list(range(3 * SEGMENT_TOKENS))
    one.add(ids, rows_of(ids))
    second = one.match(ids[: 2 * SEGMENT_TOKENS]).path[1][0]
    path = tmp_path / "root" / f"{second.name}.full"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        one.read(one.match(ids))
    assert one.match(ids).tokens == SEGMENT_TOKENS and len(list((tmp_path / "root").iterdir())) == 1
    assert same(one.read(one.match(ids))[0], rows_of(ids[:SEGMENT_TOKENS]))


def test_what_nothing_leads_to_is_removed_at_start(tmp_path: Path) -> None:
    one = tree(tmp_path)
    ids = list(range(3 * SEGMENT_TOKENS))
    one.add(ids, rows_of(ids))
    first = one.match(ids).path[0][0]
    (tmp_path / "root" / f"{first.name}.full").unlink()
    (tmp_path / "root" / "strange").write_bytes(b"not a segment")
    (tmp_path / "root" / ".x.full.999999999-1.part").write_bytes(b"half")
    again = tree(tmp_path)
    assert again.match(ids).tokens == again.segments == again.bytes == 0
    assert list((tmp_path / "root").iterdir()) == []


def test_a_segment_that_was_deleted_meanwhile_is_an_integrity_error(tmp_path: Path) -> None:
    one = tree(tmp_path)
    ids = list(range(10))
    one.add(ids, rows_of(ids))
    for path in (tmp_path / "root").iterdir():
        path.unlink()
    with pytest.raises(IntegrityError):
        one.read(one.match(ids))
    assert one.match(ids).tokens == 0


def test_leaves_that_were_used_least_go_first(tmp_path: Path) -> None:
    one = tree(tmp_path)
    base = list(range(SEGMENT_TOKENS))
    ways = [[*base, *range(1000 * n, 1000 * n + 100)] for n in range(1, 5)]
    for at, ids in enumerate(ways):
        one.add(ids, rows_of(ids))
        for path, used in ((tmp_path / "root" / f"{one.match(ids).path[-1][0].name}.full", at),):
            os.utime(path, (used + 1, used + 1))
    one = tree(tmp_path)
    one.read(one.match(ways[0]))  # it was used first, and is used now
    one.quota_bytes = one.bytes - 1
    one.collect()
    assert [one.match(ids).tokens for ids in ways] == [356, 256, 356, 356]
    one.quota_bytes = 0
    one.collect()
    assert one.bytes == one.segments == 0


def test_another_identity_goes_before_what_was_used_later(tmp_path: Path) -> None:
    other = KeptTree(tmp_path, "other", SHAPE, 10**9)
    ids = list(range(100))
    other.add(ids, rows_of(ids))
    for path in (tmp_path / "other").iterdir():
        os.utime(path, (1, 1))
    one = tree(tmp_path)
    one.add(ids, rows_of(ids))
    assert (tmp_path / "other").exists()
    one.quota_bytes = one.bytes
    one.collect()
    assert not (tmp_path / "other").exists() and one.match(ids).tokens == 100


def test_of_rows_of_another_model_nothing_is_read(tmp_path: Path) -> None:
    one = tree(tmp_path)
    ids = list(range(10))
    one.add(ids, rows_of(ids))
    (path,) = (tmp_path / "root").iterdir()
    with pytest.raises(IntegrityError, match="another model"):
        read_segment(path, CacheShape(F16, F16, (8, 8), (8, 8), (0, 0)))
