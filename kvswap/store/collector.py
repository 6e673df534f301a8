"""Collection: what the store deletes to have room, and in which order.

What is pinned, held by a lease, or belongs to a complete unpinned artifact that still fits is never collected.  Orphans
go first, then what has expired, then the artifact used longest ago.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence

from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.store.chunks import ListedChunks
from kvswap.store.tables import ROWS_AT_ONCE


class Collector:
    """The part that collects, one collection at a time; `remove` unlists an artifact, or raises `NotFound`."""

    def __init__(self, chunks: ListedChunks, remove: Callable[[str], None]) -> None:
        self._chunks = chunks
        self._remove = remove
        self._collecting = threading.Lock()

    def collect(self, target_bytes: int | None) -> int:
        """Delete orphans, then unpinned artifacts until at most `target_bytes` are used; return the bytes freed.

        Without a target only orphans go.  It works in short steps: whoever wants to write meanwhile waits for one.
        Raises `LocalFault`.
        """
        chunks = self._chunks
        with self._collecting:
            before = chunks.used_bytes
            self._drop(chunks.index.rows("SELECT cid, length FROM chunks WHERE owners = 0"))
            if target_bytes is not None:
                query = "SELECT id FROM artifacts WHERE pinned = 0 ORDER BY expires > ?, used"
                for victim in chunks.index.rows(query, time.time()):
                    if chunks.used_bytes <= target_bytes:
                        break
                    self._evict(victim["id"])
            return before - chunks.used_bytes

    def _evict(self, artifact: str) -> None:
        """Remove an artifact and the chunks that nobody else has, unless one of them is in use."""
        chunks = self._chunks
        query = "SELECT cid FROM artifact_chunks WHERE artifact = ?"
        cids = [Cid(bytes(r["cid"])) for r in chunks.index.rows(query, artifact)]
        with chunks.leases.free(cids, together=True) as free:
            if len(free) < len(cids):
                return
            with contextlib.suppress(NotFound):  # removed by hand in the same moment
                self._remove(artifact)
        self._drop(list(chunks.rows("SELECT cid, length FROM chunks WHERE owners = 0 AND cid IN ({})", cids)))

    def _drop(self, rows: Sequence[sqlite3.Row]) -> None:
        """Unlist and delete orphans that are not in use.  Raises `LocalFault`; then they stay."""
        for start in range(0, len(rows), ROWS_AT_ONCE):
            piece = rows[start : start + ROWS_AT_ONCE]
            lengths = {Cid(bytes(r["cid"])): int(r["length"]) for r in piece}
            with self._chunks.leases.free(lengths) as free:
                self._chunks.delete_orphans(free, lengths)
