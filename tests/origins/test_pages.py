"""Pages of an index: whatever is put in is found by whoever shares its beginning, however pages were split."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.errors import OriginError
from kvswap.core.ids import Cid
from kvswap.origins.pages import KEY_BYTES, PAGE_BYTES, IndexEntry, IndexPage, child, keys_of
from tests.support import key

PUBLISHER = str(key().peer_id)


def chain_of(words: list[int]) -> list[bytes]:
    """Chain digests of made-up blocks."""
    out, last = [], b""
    for word in words:
        last = hashlib.sha256(last + word.to_bytes(4, "big")).digest()
        out.append(last)
    return out


def entry_of(number: int, words: list[int], publisher: str = PUBLISHER) -> IndexEntry:
    return IndexEntry(str(Cid.of(b"%d" % number)), publisher, keys_of(chain_of(words)))


class Tree:
    """An index in memory: the same walk as `OriginIndex` does, without waiting."""

    def __init__(self) -> None:
        self.pages: dict[str, IndexPage] = {}

    def add(self, path: str, entry: IndexEntry, level: int = 0, *, whole: bool = True) -> None:
        page = self.pages.setdefault(path, IndexPage())
        below, mine = page.parts(entry)
        for depth, part in below:
            self.add(f"{path}/{child(depth, part.keys, level)}", part, level + 1, whole=whole and part is entry)
        if mine is not None:
            page.add(mine, whole=whole and mine is entry)
        for name, rows in page.split(level).items():
            for row in rows:
                self.add(f"{path}/{name}", row, level + 1)
        self.pages[path] = IndexPage.read(page.pack())

    def longest(self, path: str, keys: bytes, level: int = 0) -> list[tuple[int, IndexEntry]]:
        page = self.pages.get(path, IndexPage())
        found = page.longest(keys)
        for depth in page.splits:
            if depth <= len(keys) // KEY_BYTES:
                found += self.longest(f"{path}/{child(depth, keys, level)}", keys, level + 1)
        return found


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=40), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_longest_shared_beginning_is_found(chains: list[list[int]], seed: int) -> None:
    import kvswap.origins.pages as pages

    usual, pages.PAGE_BYTES = pages.PAGE_BYTES, 400  # so that everything is split, again and again
    try:
        tree = Tree()
        for number, words in enumerate(chains):
            tree.add("p", entry_of(number, words))
        rng = random.Random(seed)
        for words in [*chains, *([rng.randrange(3) for _ in range(rng.randrange(1, 9))] for _ in range(10))]:
            keys = keys_of(chain_of(words))
            shared = max(entry_of(0, other).shares(keys) for other in chains)
            found = tree.longest("p", keys)
            assert max((blocks for blocks, _ in found), default=0) == shared
            assert all(entry.shares(keys) == blocks > 0 for blocks, entry in found)
    finally:
        pages.PAGE_BYTES = usual


def test_many_that_begin_alike_for_long_are_not_one_page() -> None:
    rng = random.Random(1)
    tree = Tree()
    for number in range(2_000):
        tree.add("p", entry_of(number, [0] * 8 + [rng.getrandbits(31) for _ in range(rng.randrange(1, 16))]))
    assert max(page.size for page in tree.pages.values()) <= PAGE_BYTES
    assert tree.pages["p"].splits == [9] and max(path.count("/") for path in tree.pages) <= 2
    assert [blocks for blocks, _ in tree.longest("p", keys_of(chain_of([0] * 5 + [7])))] == [5, 5]  # two stand for all


def test_one_publisher_takes_no_place_of_another() -> None:
    page = IndexPage(splits=[3])
    for number in range(20):
        page.add(entry_of(number, [1, 2]), whole=False)
    assert len(page.entries) == 2
    other = str(key(2).peer_id)
    assert page.add(entry_of(50, [1, 2], other), whole=False)
    assert page.remove(page.entries[0].artifact) and len(page.entries) == 2
    assert not page.remove(entry_of(99, [1]).artifact)


def test_of_one_chain_the_newest_are_kept() -> None:
    page = IndexPage()
    for number in range(70):
        page.add(entry_of(number, [1]), whole=True)
    assert [e.artifact for e in page.entries] == [entry_of(n, [1]).artifact for n in range(6, 70)]
    assert not page.add(page.entries[3], whole=True)


@given(st.binary(max_size=200))
def test_what_is_no_page_is_refused(data: bytes) -> None:
    try:
        page = IndexPage.read(data)
    except OriginError:
        return
    assert IndexPage.read(page.pack()) == page


@pytest.mark.parametrize(
    "form",
    [
        b"\x94\x02\x90\x90\x90",  # of another version
        b"\x94\x01\x90\x91\x93\xc4\x24" + bytes(36) + b"\x00\xc4\x08" + bytes(8) + b"\x90",  # no such publisher
        b"\x94\x01\x91\xa1x\x91\x93\xc4\x24" + bytes(36) + b"\x00\xc4\x07" + bytes(7) + b"\x90",  # no whole key
    ],
)
def test_a_page_that_contradicts_itself_is_refused(form: bytes) -> None:
    with pytest.raises(OriginError):
        IndexPage.read(form)
