"""Ingest: how bytes become a chunk of the store, and how they become durable.

First there is room for them, then the file is written under its own name, then it is listed.  It is synced before it
is listed, or marked as not synced yet and synced behind (`write_behind`); what a crash left marked is checked when the
store is opened.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Sequence

from kvswap.core.errors import IntegrityError, KvswapError, StoreFull
from kvswap.core.ids import Cid
from kvswap.core.upkeep import Problems
from kvswap.store.chunks import ListedChunks
from kvswap.store.write_behind import WriteBehind

_WATERMARK = 0.9  # of the quota: what a collection for want of room leaves at most
PROBLEM = "chunks"  # in `Problems`


class ChunkWriter:
    """The way of chunks into a store of at most `quota_bytes`; `collect` makes room, down to so many bytes."""

    def __init__(
        self, chunks: ListedChunks, problems: Problems, quota_bytes: int, collect: Callable[[int | None], int]
    ) -> None:
        self._chunks, self._problems = chunks, problems
        self.quota_bytes = quota_bytes
        self._collect = collect
        self._reserved = 0  # bytes of writes under way
        self.write_behind = WriteBehind(self._sync, self._synced, problems)

    def put(
        self,
        data: bytes | memoryview,
        cid: Cid | None,
        owner: mmap.mmap | None,
        arrived: Cid | None,
        *,
        write_behind: bool,
        cached: bool,
    ) -> Cid:
        """Store bytes as a chunk and return its CID; see `Store.put_chunk`."""
        chunks = self._chunks
        actual = Cid.of(data) if arrived is None else arrived
        if cid is not None and actual != cid:
            raise IntegrityError(f"bytes offered as chunk {cid} are {actual}")
        chunks.leases.wait_deleted(actual)
        if chunks.has(actual):
            return actual
        self._reserve(len(data))
        try:
            chunks.files.write(actual, data, owner, synced=not write_behind, cached=cached)
            with chunks.guard:
                if chunks.files.gone(actual):  # a collection may have taken an old orphan of this name
                    chunks.files.write(actual, data, owner, synced=not write_behind, cached=cached)
                added = chunks.add(actual, len(data), synced=not write_behind)
            if write_behind and added:
                self.write_behind.add(actual, len(data))
        finally:
            with chunks.guard:
                self._reserved -= len(data)
        return actual

    def _reserve(self, size: int) -> None:
        """Take room before writing: several writers at once must not overshoot together."""
        chunks, quota = self._chunks, self.quota_bytes
        with chunks.guard:
            fits = chunks.used_bytes + self._reserved + size <= quota
        if not fits:
            # Below the quota by a margin, so that not every chunk that follows collects again.
            self._collect(max(0, int(_WATERMARK * quota) - self._reserved - size))
        with chunks.guard:
            if chunks.used_bytes + self._reserved + size > quota:
                raise StoreFull(
                    f"no room for {size} bytes: {chunks.used_bytes} of {quota} are used by what is pinned or in use",
                    cause="the quota is reached",
                    hint="kvswap gc, kvswap rm, or KVSWAP_QUOTA_BYTES",
                )
            self._reserved += size

    def adopt(self, cid: Cid, length: int) -> bool:
        """List a file that was found whole and is not listed; return False when it is gone or listed by now."""
        chunks = self._chunks
        with chunks.guard:
            if chunks.files.gone(cid):
                return False  # collected since it was read
            added = chunks.add(cid, length, synced=False)
        if added:
            self.write_behind.add(cid, length)
        return added

    # -- durability --------------------------------------------------------------------------------

    def make_durable(self, cids: Sequence[Cid]) -> None:
        """Sync files that were written behind, and the directories that name them."""
        unsynced: list[Cid] = []
        here: list[Cid] = []
        query = "SELECT cid, synced FROM chunks WHERE cid IN ({})"
        for row in self._chunks.rows(query, list(dict.fromkeys(cids))):
            here.append(Cid(bytes(row["cid"])))
            if not row["synced"]:
                unsynced.append(here[-1])
        for cid in unsynced:
            self._sync(cid)
        if unsynced:
            self._synced(unsynced)
        self._chunks.files.sync_names(here)

    def check_unsynced(self) -> None:
        """Check the chunks that a crash left unsynced: after a loss of power a file may be empty, or gone."""
        rows = self._chunks.index.rows("SELECT cid FROM chunks WHERE NOT synced")
        done = []
        for cid in [Cid(bytes(r["cid"])) for r in rows]:
            try:
                right = self._chunks.whole(cid) is not None
                if right:
                    self._sync(cid)
            except FileNotFoundError:
                right = False
            except KvswapError as error:  # it stays marked, and is looked at when the store is opened next
                self._problems.note(PROBLEM, error)
                continue
            if not right:
                self._discard(cid)
            done.append(cid)
        if done:
            self._synced(done)

    def _sync(self, cid: Cid) -> None:
        """Make a chunk durable; what the disk did not keep is forgotten.  Raises `KvswapError` where it cannot ask."""
        try:
            self._chunks.files.sync(cid)
        except FileNotFoundError:
            pass  # collected meanwhile
        except OSError:  # only now the disk says that it did not keep it
            self._discard(cid)

    def _synced(self, cids: Sequence[Cid]) -> None:
        digests = [(cid.digest,) for cid in cids]
        self._chunks.index.write(lambda db: db.executemany("UPDATE chunks SET synced = 1 WHERE cid = ?", digests))

    def _discard(self, cid: Cid) -> None:
        """Unlist a chunk and delete its file; where it cannot be deleted it stays, and nobody lists it."""
        self._chunks.forget(cid)
        with contextlib.suppress(OSError):
            self._chunks.files.remove(cid)
