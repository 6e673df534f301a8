"""Compact catalogues: which beginnings of documents a node has, in 8 bytes a block.

A DHT record for every block of every document would drown the DHT, and sending a whole chain of
digests to every peer for every document is not much better.  So nodes pull each other's catalogue:
the first 8 bytes of the chain digests of all complete artifacts, sorted.  A reader finds the longest
match in what it holds, by bisection - a chain digest stands for everything before it, so matches are
monotone - and then asks only those peers, for that one digest.  A catalogue is a hint like every
other answer: what it leads to is checked.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence

from kvswap.core.limits import LIMITS
from kvswap.exchange.serving.permission import Permission
from kvswap.net import messages
from kvswap.store import Store

KEY_BYTES = 8
_KEPT = 256
_FRESH_SECONDS = 30.0


def pack_keys(digests: Sequence[bytes]) -> bytes:
    """Sorted, each once."""
    return b"".join(sorted({digest[:KEY_BYTES] for digest in digests}))


def holds(keys: bytes, digest: bytes) -> bool:
    """Whether a packed catalogue has this digest's key."""
    wanted = digest[:KEY_BYTES]
    count = len(keys) // KEY_BYTES
    at = bisect.bisect_left(range(count), wanted, key=lambda i: keys[i * KEY_BYTES : (i + 1) * KEY_BYTES])
    return at < count and keys[at * KEY_BYTES : (at + 1) * KEY_BYTES] == wanted


def longest(keys: bytes, chain: Sequence[bytes]) -> int:
    """How many leading blocks of `chain` the catalogue has."""
    return bisect.bisect_left(range(len(chain)), True, key=lambda i: not holds(keys, chain[i]))


class OwnCatalogue:
    """This node's, made anew when what it may offer has changed.  Blocks; call in a thread."""

    def __init__(self, store: Store, permission: Permission | None = None) -> None:
        self._store = store
        self._permission = permission
        self._lock = threading.Lock()
        self._version = 0
        self._keys = b""
        self._stamp: tuple[object, ...] = ()
        self._until = 0.0  # when something in it expires

    def reply(self, version: int) -> messages.CatalogueReply:
        """Return the keys and their version; the version alone where the reader has it."""
        with self._lock:
            stamp = self._permission.stamp if self._permission is not None else (self._store.generation,)
            if stamp != self._stamp or time.time() >= self._until:
                withheld = self._permission.withheld() if self._permission is not None else ((), ())
                digests, self._until = self._store.chain_digests(LIMITS.catalogue_bytes // KEY_BYTES, *withheld)
                self._keys, self._stamp = pack_keys(digests), stamp
                self._version = max(self._version + 1, self._store.generation)
            return messages.CatalogueReply(self._version, None if version == self._version else self._keys)


class Catalogues:
    """Those of peers, as last heard; those heard longest ago are forgotten."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, tuple[int, bytes, float]] = OrderedDict()
        self.generation = 0  # another one: something was heard that was not known

    def version(self, peer: str) -> int:
        return self._held[peer][0] if peer in self._held else 0

    def stale(self, peer: str) -> bool:
        return peer not in self._held or time.monotonic() - self._held[peer][2] > _FRESH_SECONDS

    def expire(self, peer: str) -> None:
        """The peer announced something new: ask again before relying on what is held."""
        if peer in self._held:
            version, keys, _ = self._held[peer]
            self._held[peer] = (version, keys, -_FRESH_SECONDS)

    def put(self, peer: str, reply: messages.CatalogueReply) -> None:
        before = self._held.get(peer, (0, b"", 0.0))[1]
        keys = reply.keys if reply.keys is not None else before
        self.generation += keys != before
        self._held[peer] = (reply.version, keys, time.monotonic())
        self._held.move_to_end(peer)
        while len(self._held) > _KEPT:
            self._held.popitem(last=False)

    def packed(self) -> bytes:
        """The keys of all, not sorted."""
        return b"".join(keys for _, keys, _ in self._held.values())

    def best(self, chain: Sequence[bytes]) -> tuple[int, list[str]]:
        """(blocks, peers) of the longest match; 0 and none without one."""
        matches = {peer: longest(keys, chain) for peer, (_, keys, _) in self._held.items()}
        most = max(matches.values(), default=0)
        return most, sorted(peer for peer, blocks in matches.items() if blocks == most) if most else []
