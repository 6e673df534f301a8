"""The chunk lists of artifacts, cached for readers that ask again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable

from kvswap.core.bounded import Table
from kvswap.core.ids import Cid
from kvswap.core.limits import MIB

_KEPT = 32
_CID_BYTES = 160  # of one id in memory, about


class ChunkLists:
    """The CIDs of artifacts' files in the store, in the manifest's order.  May be used from any thread."""

    def __init__(self, read: Callable[[str], list[Cid]]) -> None:
        """`read(artifact)` makes the list of one; it blocks, and raises `NotFound`."""
        self._read = read
        self._lock = threading.Lock()
        self.table: Table[str, list[Cid]] = Table(
            "chunk lists", entries=_KEPT, nbytes=32 * MIB, size=lambda artifact, cids: len(cids) * _CID_BYTES
        )

    def __call__(self, artifact: str) -> list[Cid]:
        """Return the list of one artifact.  Raises `NotFound`."""
        with self._lock:
            known = self.table.get(artifact)
        if known is None:
            known = self._read(artifact)
            with self._lock:
                self.table.put(artifact, known)
        return known
