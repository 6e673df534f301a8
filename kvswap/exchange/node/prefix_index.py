"""Prefix indexes: which prefixes of documents a node has, in 8 bytes a block.

A DHT record for every block of every document would drown the DHT, and sending a whole chain of
digests to every peer for every document is not much better.  So nodes pull each other's prefix index:
the first 8 bytes of the chain digests of all complete artifacts, sorted.  A reader finds the longest
match in what it holds, by bisection - a chain digest stands for everything before it, so matches are
monotone - and then asks only those peers, for that one digest.  A prefix index is a hint like every
other answer: what it leads to is checked.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvswap.core.bounded import Table
from kvswap.core.limits import LIMITS, MIB
from kvswap.exchange.node.permission import Permission
from kvswap.net import messages
from kvswap.store import Store

KEY_BYTES = 8
_KEPT = 256
_KEPT_BYTES = 32 * MIB
_FRESH_SECONDS = 30.0
_FALSE_INDEXES = 1_024
_FALSE_INDEX_SECONDS = 600.0
_TAKEN_BACK = 2  # times in as long that a claim may be gone when it is asked after


@dataclass(frozen=True, slots=True)
class _ReceivedIndex:
    """A peer's prefix index, and when it was received."""

    version: int
    keys: bytes
    at: float  # monotonic


def pack_keys(digests: Sequence[bytes]) -> bytes:
    """Pack the first 8 bytes of each digest, sorted and each once, into one prefix index.

    They are sorted in 256 parts, by their first byte: one sort of them all keeps Python's lock for too long.
    """
    parts: list[set[bytes]] = [set() for _ in range(256)]
    for digest in digests:
        parts[digest[0]].add(digest[:KEY_BYTES])
    return b"".join(b"".join(sorted(part)) for part in parts)


def holds(keys: bytes, digest: bytes) -> bool:
    """Return True if a packed prefix index has this digest's key."""
    wanted = digest[:KEY_BYTES]
    count = len(keys) // KEY_BYTES
    at = bisect.bisect_left(range(count), wanted, key=lambda i: keys[i * KEY_BYTES : (i + 1) * KEY_BYTES])
    return at < count and keys[at * KEY_BYTES : (at + 1) * KEY_BYTES] == wanted


def longest(keys: bytes, chain: Sequence[bytes]) -> int:
    """Count the leading blocks of `chain` that a packed prefix index has."""
    return bisect.bisect_left(range(len(chain)), True, key=lambda i: not holds(keys, chain[i]))


class OwnPrefixIndex:
    """The prefix index of this node, rebuilt when what it may offer has changed.

    Its methods block; call them in a thread.
    """

    def __init__(self, store: Store, permission: Permission | None = None) -> None:
        self._store = store
        self._permission = permission
        self._lock = threading.Lock()
        self._version = 0
        self._keys = b""
        self._stamp: tuple[object, ...] = ()
        self._until = 0.0  # when something in it expires

    def reply(self, version: int) -> messages.PrefixIndexReply:
        """Return the keys and their version; the version alone where it is the one that the reader has."""
        with self._lock:
            stamp = self._permission.stamp if self._permission is not None else (self._store.generation,)
            if stamp != self._stamp or time.time() >= self._until:
                withheld = self._permission.withheld() if self._permission is not None else ((), ())
                digests, self._until = self._store.chain_digests(LIMITS.prefix_index_bytes // KEY_BYTES, *withheld)
                self._keys, self._stamp = pack_keys(digests), stamp
                self._version = max(self._version + 1, self._store.generation)
            return messages.PrefixIndexReply(self._version, None if version == self._version else self._keys)


class PrefixIndexes:
    """The prefix indexes of peers, as last received.

    A peer that claims what it does not have is ignored for a while.
    """

    def __init__(self, delivered: Callable[[str], bool] = lambda peer: False) -> None:
        """`delivered(peer)`: whether it ever gave what it was asked for; its prefix index is kept."""
        self._delivered = delivered
        self.table: Table[str, _ReceivedIndex] = Table(
            "catalogues",
            entries=_KEPT,
            nbytes=_KEPT_BYTES,
            keep=lambda peer, received: delivered(peer),
            size=lambda peer, received: len(received.keys),
        )
        self.false_indexes: Table[str, float] = Table(
            "catalogues that claimed in vain", entries=_FALSE_INDEXES
        )  # until when
        self.taken_back: Table[str, tuple[int, float]] = Table(
            "catalogues that took claims back", entries=_FALSE_INDEXES
        )
        self.generation = 0  # another one: something was heard that was not known

    def version(self, peer: str) -> int:
        """Return the version of a peer's prefix index that is held; 0 without one."""
        received = self.table.peek(peer)
        return received.version if received is not None else 0

    def stale(self, peer: str) -> bool:
        """Return True if a peer's prefix index should be pulled again; False for a peer that is ignored for now."""
        if (self.false_indexes.get(peer) or 0.0) > time.monotonic():
            return False  # not worth another look
        received = self.table.peek(peer)
        return received is None or time.monotonic() - received.at > _FRESH_SECONDS

    def expire(self, peer: str) -> None:
        """Mark what is held of a peer as stale, because it announced something new."""
        received = self.table.peek(peer)
        if received is not None:
            self.table.put(peer, replace(received, at=-_FRESH_SECONDS), peer)

    def put(self, peer: str, reply: messages.PrefixIndexReply) -> None:
        """Keep a peer's answer; one without keys confirms those that are held."""
        known = self.table.peek(peer)
        before = known.keys if known is not None else b""
        keys = reply.keys if reply.keys is not None else before
        self.generation += keys != before
        self.table.put(peer, _ReceivedIndex(reply.version, keys, time.monotonic()), peer)

    def drop(self, peer: str) -> None:
        """Forget the prefix index of a peer that does not have what it claims, and ignore the peer for ten minutes."""
        if self.table.pop(peer) is not None:
            self.generation += 1
        self.false_indexes.put(peer, time.monotonic() + _FALSE_INDEX_SECONDS, peer)

    def took_back(self, peer: str) -> bool:
        """Note that a peer no longer claims what it did not have when asked for it; False if that happened too often.

        An artifact may go at any time, but each such change costs a reader that looks up a request.
        """
        now = time.monotonic()
        times, since = self.taken_back.get(peer) or (0, now)
        if now - since > _FALSE_INDEX_SECONDS:
            times, since = 0, now
        self.taken_back.put(peer, (times + 1, since), peer)
        return times < _TAKEN_BACK

    def shared_since(self, peer: str, chain: Sequence[bytes], since: float) -> int | None:
        """Count the leading blocks of `chain` that a peer claims; None if nothing came since then (monotonic)."""
        received = self.table.peek(peer)
        return longest(received.keys, chain) if received is not None and received.at >= since else None

    def packed(self) -> bytes:
        """Return the keys of all peers, joined and not sorted."""
        return b"".join(received.keys for received in self.table.values())

    def ranked(self, chain: Sequence[bytes]) -> list[tuple[int, list[str]]]:
        """List (blocks, peers) of every match, the longest first; of equal peers those that delivered come first."""
        by_blocks: dict[int, list[str]] = {}
        for peer, received in self.table.items():
            if blocks := longest(received.keys, chain):
                by_blocks.setdefault(blocks, []).append(peer)
        return [
            (blocks, sorted(peers, key=lambda peer: (not self._delivered(peer), peer)))
            for blocks, peers in sorted(by_blocks.items(), reverse=True)
        ]

    def best(self, chain: Sequence[bytes]) -> tuple[int, list[str]]:
        """Return (blocks, peers) of the longest match; (0, []) without one."""
        return next(iter(self.ranked(chain)), (0, []))
