"""Pages of an index: which artifacts begin with a chain of digests.  Pure: no IO.

A page holds entries, each an artifact with the keys of its chain: the first 8 bytes of each chain digest.  A page that
grows too large is split at one depth of the chain: entries that are as deep move to children, chosen by their digest at
that depth, and the page keeps of what they share above it two entries for each publisher.  So a reader needs the page
and, for each split within its own chain, one child; and many chains that begin alike for long make no page of all.

It is a hint, like every index: what it leads to is a signed manifest, and that is compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import msgspec
from msgspec import Meta

from kvswap.core import wire
from kvswap.core.errors import OriginError
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS

KEY_BYTES = 8
PAGE_BYTES = 32 * 1024  # beyond it a page is split, where that makes it smaller
_WORTH = 0.75  # the largest part of a split must be so much smaller
_ALIKE = 64  # entries of one and the same chain
_STANDING = 8  # entries that stand for what moved away from below one place,
_OF_ONE_PUBLISHER = 2  # and of one publisher: one may be withdrawn
_DEPTHS = 512  # at which a split is tried
_DEEPEST = 6  # splits below one another: each takes another byte of the key


class PageForm(msgspec.Struct, frozen=True, array_like=True):
    """A page as it is written: publishers once, and entries of (artifact, number of the publisher, keys)."""

    version: int
    publishers: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=4_096)]
    entries: list[tuple[Annotated[bytes, Meta(min_length=36, max_length=36)], Annotated[int, Meta(ge=0)], bytes]]
    splits: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(max_length=64)]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """An artifact, who published it, and the keys of its chain, 8 bytes a block."""

    artifact: str
    publisher: str
    keys: bytes

    @property
    def depth(self) -> int:
        """The number of blocks."""
        return len(self.keys) // KEY_BYTES

    def above(self, depth: int) -> IndexEntry:
        """Return what the entry says of the blocks before this depth."""
        return replace(self, keys=self.keys[: (depth - 1) * KEY_BYTES])

    def shares(self, keys: bytes) -> int:
        """Count the leading blocks that these keys share."""
        most = min(len(self.keys), len(keys)) // KEY_BYTES
        if self.keys[: most * KEY_BYTES] == keys[: most * KEY_BYTES]:
            return most
        low, high = 0, most  # a bisection: a chain digest stands for all before it, but keys are compared as they are
        while low < high - 1:
            middle = (low + high) // 2
            if self.keys[: middle * KEY_BYTES] == keys[: middle * KEY_BYTES]:
                low = middle
            else:
                high = middle
        return low


def keys_of(chain: Sequence[bytes]) -> bytes:
    """Pack the keys of chain digests."""
    return b"".join(digest[:KEY_BYTES] for digest in chain)


@dataclass(slots=True)
class IndexPage:
    """The entries of one page, and the depths at which it is split."""

    entries: list[IndexEntry] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)

    @classmethod
    def read(cls, data: bytes, name: str = "") -> IndexPage:
        """Parse a page.  Raises `OriginError`."""
        form = wire.unpack(data, PageForm, OriginError, items=LIMITS.origin_page_items)
        if form.version != 1:
            raise OriginError(f"{name} is a page of version {form.version}", cause="a newer kvswap wrote it")
        entries = []
        for artifact, number, keys in form.entries:
            if number >= len(form.publishers) or len(keys) % KEY_BYTES or not keys:
                raise OriginError(f"{name} is no page of an index", cause="it is damaged, or something else")
            entries.append(IndexEntry(str(Cid(artifact[4:])), form.publishers[number], keys))
        return cls(entries, sorted(form.splits))

    def pack(self) -> bytes:
        """Return the bytes of the page."""
        publishers = list(dict.fromkeys(entry.publisher for entry in self.entries))
        numbers = {publisher: number for number, publisher in enumerate(publishers)}
        rows = [(bytes(Cid.parse(e.artifact)), numbers[e.publisher], e.keys) for e in self.entries]
        return wire.pack(wire.plain(PageForm(1, publishers, rows, self.splits)))

    @property
    def size(self) -> int:
        """The length of the page in bytes, nearly."""
        return _size(self.entries)

    def longest(self, keys: bytes) -> list[tuple[int, IndexEntry]]:
        """List the entries that share the beginning of these keys, with the number of blocks that they share."""
        return [(blocks, entry) for entry in self.entries if (blocks := entry.shares(keys))]

    # -- changing it -------------------------------------------------------------------------------

    def parts(self, entry: IndexEntry) -> tuple[list[tuple[int, IndexEntry]], IndexEntry | None]:
        """Return where an entry belongs: (depth of a split, what its child holds), and what this page holds of it."""
        below: list[tuple[int, IndexEntry]] = []
        for depth in sorted(self.splits, reverse=True):
            if entry.depth >= depth:
                below.append((depth, entry))
                entry = entry.above(depth)
        return below, entry if entry.keys else None

    def add(self, entry: IndexEntry, *, whole: bool) -> bool:
        """Add an entry; return True if the page changed.  `whole`: it is all of the chain, not what stands for it."""
        if not whole and not self._stands(entry):
            return False
        if entry in self.entries:
            return False
        self.entries = [
            e for e in self.entries if not (e.artifact == entry.artifact and len(e.keys) <= len(entry.keys))
        ]
        self.entries.append(entry)
        alike = [e for e in self.entries if e.keys == entry.keys]
        for oldest in alike[: max(0, len(alike) - _ALIKE)]:
            self.entries.remove(oldest)
        return True

    def _stands(self, entry: IndexEntry) -> bool:
        """Return True if too little of this publisher stands here yet for what an entry says."""
        like = [e.publisher for e in self.entries if e.keys.startswith(entry.keys)]
        return like.count(entry.publisher) < _OF_ONE_PUBLISHER and len(like) < _STANDING

    def remove(self, artifact: str) -> bool:
        """Remove what an artifact has in this page; return True if there was something."""
        before = len(self.entries)
        self.entries = [entry for entry in self.entries if entry.artifact != artifact]
        return len(self.entries) < before

    def split(self, level: int) -> dict[str, list[IndexEntry]]:
        """Split a page that is too large, where that helps; return what goes to which child.  `level`: splits above."""
        if self.size <= PAGE_BYTES or level >= _DEEPEST:
            return {}
        best, depth = self.size * _WORTH, 0
        for tried in self._depths():
            largest = max(_size(part) for part in self._divided(tried, level).values())
            if largest < best:
                best, depth = largest, tried
        if not depth:
            return {}
        children = self._divided(depth, level)
        self.entries = children.pop("")
        self.splits = sorted({*self.splits, depth})
        return children

    def _depths(self) -> Iterator[int]:
        deepest = max(entry.depth for entry in self.entries)
        yield from range(1, min(deepest, _DEPTHS) + 1)

    def _divided(self, depth: int, level: int) -> dict[str, list[IndexEntry]]:
        """Return the parts of a split by the names of the children; what stays is under an empty name."""
        parts: dict[str, list[IndexEntry]] = defaultdict(list)
        stay = IndexPage([entry for entry in self.entries if entry.depth < depth])
        seen: Counter[tuple[str, bytes]] = Counter()
        for entry in self.entries:
            if entry.depth >= depth:
                parts[child(depth, entry.keys, level)].append(entry)
                above = entry.above(depth)
                seen[above.publisher, above.keys] += 1
                if above.keys and seen[above.publisher, above.keys] <= _OF_ONE_PUBLISHER:
                    stay.entries.append(above)
        parts[""] = stay.entries
        return parts


def child(depth: int, keys: bytes, level: int) -> str:
    """Return the name of the child that holds a chain which is split at this depth."""
    start = (depth - 1) * KEY_BYTES
    return f"{depth}-{keys[start + 2 + level :][:1].hex()}"


def _size(entries: Iterable[IndexEntry]) -> int:
    """Estimate the bytes of entries in a page."""
    publishers: Counter[str] = Counter()
    total = 0
    for entry in entries:
        total += 36 + 6 + len(entry.keys)
        publishers[entry.publisher] += 1
    return total + sum(len(publisher) + 2 for publisher in publishers)
