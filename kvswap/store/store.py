"""The store: one node's chunks and artifacts on disk, opened, repaired and closed as one.

`chunks` reads what is listed, `ingest` writes, `collector` deletes, `check` hashes all of it again, `artifacts`
answers queries; what is here is the store's life and the listing of artifacts.

Guarantees:
* A chunk is listed only after its bytes, checked against their CID, are written whole: synced as well, or marked
  as not synced yet, and then checked again when the store is opened after a crash (`write_behind`).
* An artifact is *complete* only when every chunk that a reader of the whole document needs is listed.
* What the index says can be made anew from chunk files and envelopes (`rebuild`): losing it loses nothing.
* One process holds a store (`StoreLocked` for the second).
* What is pinned, held by a lease, or belongs to a complete unpinned artifact that still fits the
  quota is never collected.  Collection takes orphans first, then the artifact used longest ago.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path

from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.failures import as_kvswap_error
from kvswap.core.ids import Cid
from kvswap.core.upkeep import Problems
from kvswap.store.artifacts import Artifacts
from kvswap.store.check import check_files
from kvswap.store.chunks import ListedChunks
from kvswap.store.collector import Collector
from kvswap.store.envelopes import Envelopes
from kvswap.store.files import ChunkFile, ChunkFiles
from kvswap.store.index import Index
from kvswap.store.ingest import PROBLEM, ChunkWriter
from kvswap.store.listing import ArtifactRow, Listing, Reader, StoreReport
from kvswap.store.lock import hold
from kvswap.store.rebuild import Rebuild, list_artifact, recount


class Store(Artifacts):
    """The chunks and artifacts of one node.  Methods block; callers on an event loop use a thread."""

    def __init__(self, root: Path, quota_bytes: int, lock: int) -> None:
        self.root = root
        self._lock = lock
        self.problems = Problems()  # of this disk; `kvswap status` shows them
        self._files = ChunkFiles(root)
        self._envelopes = Envelopes(root)
        with contextlib.suppress(OSError):
            self._files.clear_temporary()
        self._index = Index(root / "index.sqlite3", on_problem=self._note_problem, cache=True)
        self._chunks = ListedChunks(self._index, self._files)
        self._collector = Collector(self._chunks, lambda artifact: self.remove(artifact, durable=False))
        self._rebuild = Rebuild(self._index, self._files, self._envelopes, self.problems)
        self._reader: Reader | None = None
        self._looked = False
        self._remade = self._index.empty
        if self._remade:
            self._rebuild.list_files()
        self._rebuild.finish_removals()
        self._chunks.count_used()
        self._index.remake = self._remake
        self._ingest = ChunkWriter(self._chunks, self.problems, quota_bytes, self.collect)
        self._ingest.check_unsynced()
        self._rebuild.keep()

    @classmethod
    def open(cls, root: Path, quota_bytes: int = 10**10) -> Store:
        """Open or create a store, of `quota_bytes` of chunks at most.

        Raises `StoreLocked` when another process has it, `KvswapError` where the disk refuses.
        """
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = hold(root / "lock", root)
            try:
                return cls(root, quota_bytes, descriptor)
            except BaseException:
                os.close(descriptor)
                raise
        except (OSError, sqlite3.Error) as error:
            raise as_kvswap_error(error, f"opening the store {root}") from error

    def close(self) -> None:
        """Sync what is waiting, and release the store."""
        self._ingest.write_behind.close()
        self._index.close()
        os.close(self._lock)

    # -- the disk ----------------------------------------------------------------------------------

    def read_with(self, reader: Reader) -> None:
        """List the artifacts that are on disk and not in the index.

        `reader` parses an envelope, now and after damage.
        """
        self._reader = reader
        adopted = self._rebuild.adopt(reader)
        if adopted:
            self._chunks.changed()
        if adopted and self._remade:
            self.problems.note("index", f"the index was not there: it was made anew from {adopted} manifests on disk")

    def maintain(self) -> None:
        """Repair what the disk allows again: call it now and then, in a thread.  Raises `KvswapError`."""
        try:
            gone = not self._files.directory.exists()
            self._files.make_directories()
            if gone:  # somebody removed it: what is listed is not here
                self._chunks.forget_missing()
            self._relock()
            if self._index.maintain():
                self._rebuild.forget_removals(self._envelopes.removed_artifacts())
            if self._rebuild.pending:
                self._rebuild.keep()
            if self._rebuild.put_off and self._reader is not None and self._rebuild.adopt(self._reader):
                self._chunks.changed()
            if not self._looked:
                self._looked = True
                self._index.check()
        except (OSError, sqlite3.Error) as error:
            raise as_kvswap_error(error, "looking after the store") from error

    def _note_problem(self, text: str | None) -> None:
        if text is None:
            self.problems.clear_one("index")
        else:
            self.problems.note("index", text)

    def _remake(self) -> None:
        """Fill a new index from the disk; with the index's lock held, so nothing here takes the guard."""
        self._rebuild.list_files()
        if self._reader is not None:
            self._rebuild.adopt(self._reader)
        self._chunks.count_used()
        self._chunks.changed()

    def _relock(self) -> None:
        """Hold the lock where a second process looks for it, when somebody removed the file."""
        path = self.root / "lock"
        with contextlib.suppress(OSError):
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(self._lock)):
                old, self._lock = self._lock, hold(path, self.root)
                os.close(old)

    # -- chunks ----------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """The number that grows after every change of what is here."""
        return self._chunks.generation

    @property
    def used_bytes(self) -> int:
        """The bytes of all listed chunks."""
        return self._chunks.used_bytes

    @property
    def quota_bytes(self) -> int:
        """The bytes of chunks that the store may hold."""
        return self._ingest.quota_bytes

    @property
    def chunks_directory(self) -> Path:
        """The directory of chunk files, for readers that check the digests themselves (see `files.chunk_path`)."""
        return self._files.directory

    def put_chunk(
        self,
        data: bytes | memoryview,
        cid: Cid | None = None,
        owner: mmap.mmap | None = None,
        arrived: Cid | None = None,
        write_behind: bool = False,
        cached: bool = False,
    ) -> Cid:
        """Store bytes as a chunk and return its CID; `cid`, when given, is what they must be.  Idempotent.

        `write_behind`: list the chunk when it is written and sync it soon after, for what can be had again; `cached`:
        write it through the page cache, for what is read soon.
        `owner` is the aligned memory that `data` lies at the beginning of, if it does (`store.direct`);
        `arrived` is the CID of these very bytes, when the caller has computed it: then they are not hashed again.
        Raises `IntegrityError` before anything is written, `StoreFull` when the quota or the disk
        has no room even after collection.
        """
        return self._ingest.put(data, cid, owner, arrived, write_behind=write_behind, cached=cached)

    def has_chunk(self, cid: Cid) -> bool:
        """Return True if a chunk is listed."""
        return self._chunks.has(cid)

    def chunk_length(self, cid: Cid) -> int:
        """Return the length of a listed chunk in bytes.  Raises `NotFound`."""
        return self._chunks.length(cid)

    def missing(self, cids: Iterable[Cid]) -> list[Cid]:
        """List those of the chunks that are not in the store, in order, each once."""
        return self._chunks.missing(cids)

    def open_chunk(self, cid: Cid) -> AbstractContextManager[ChunkFile]:
        """Open a chunk to read in pieces, checked whole before, not collected while it is open.

        Raises `NotFound`, `IntegrityError` after setting a bad file aside, or `LocalFault` where the disk refuses.
        """
        return self._chunks.open(cid)

    def get_chunk(self, cid: Cid) -> bytes:
        """Return the bytes of a chunk, whole and checked.  Raises as `open_chunk` does."""
        with self._chunks.open(cid) as file:
            return file.read()

    def check_chunk(self, cid: Cid) -> None:
        """Hash the file of a chunk, whatever was found before.  Raises as `open_chunk` does."""
        self._chunks.check(cid)

    def lease(self, cids: Iterable[Cid] = ()) -> AbstractContextManager[Callable[[Cid], None]]:
        """Hold these chunks, and those passed to the yielded function, so that they are not collected meanwhile.

        It waits for nothing: it may be taken on an event loop, of a few chunks; `held` takes one of many.
        """
        return self._chunks.leases.lease(cids)

    def held(self, named: Callable[[], Iterable[Cid]]) -> AbstractAsyncContextManager[None]:
        """Hold the chunks that `named` returns, so that they are not collected; walks in threads."""
        return self._chunks.leases.held(named)

    def collect(self, target_bytes: int | None = None) -> int:
        """Delete chunks of no artifact, then unpinned artifacts until at most `target_bytes` are used.

        What has expired goes first, then what was used longest ago.  Returns the bytes freed.  Without a
        target only orphans go.  It works in short steps: whoever wants to write meanwhile waits for one.
        """
        freed = self._collector.collect(target_bytes)
        if freed and self._index.detached:
            with contextlib.suppress(KvswapError):
                self.maintain()  # there may be room again for what is only in memory
        return freed

    def verify(self) -> StoreReport:
        """Hash every file again: right but unlisted files are adopted, wrong ones set aside.

        What cannot be read stays as it is: the first of these is raised, as `LocalFault`, when all others are done.
        """
        missing = self._chunks.forget_missing()
        with contextlib.suppress(KvswapError):
            self.maintain()
        found = check_files(self._chunks, self._ingest)
        self._rebuild.keep()
        if self._reader is not None:
            self._rebuild.adopt(self._reader)
        self._index.write(recount)
        self._chunks.changed()
        if found.unread is not None:
            raise found.unread
        self.problems.clear_one(PROBLEM)
        (row,) = self._index.rows("SELECT COUNT(*) AS n FROM artifacts WHERE complete = 0")
        missing += found.missing
        return StoreReport(found.checked, found.adopted, found.quarantined, missing, int(row["n"]))

    # -- artifacts -------------------------------------------------------------------------------

    def put_artifact(
        self,
        row: ArtifactRow,
        envelope: bytes,
        needed: Collection[Cid],
        others: Collection[Cid],
        chain: Sequence[bytes],
        *,
        durable: bool = True,
    ) -> bool:
        """List an artifact; True when all its `needed` chunks are here.  Idempotent; keeps pins.

        See `Listing`.  `durable`: files, names and envelope survive a loss of power from now on; else what is lost
        can be had again from where it came.  Raises `StoreFull` or `LocalFault`, and lists nothing.
        """
        listing = Listing(row, envelope, needed, others, chain)
        try:
            if durable:
                self._ingest.make_durable([*needed, *others])
            if durable or not self._envelopes.has(row.id):
                self._envelopes.write(row.id, envelope, added=row.added, used=row.used, durable=durable)
                self._envelopes.forget(row.id)
        except OSError as error:
            raise as_kvswap_error(error, f"writing the manifest of {row.id}") from error
        complete = self._index.write(lambda db: list_artifact(db, listing))
        self._chunks.changed()
        return complete

    def touch(self, artifact: str) -> None:
        """Note that an artifact is used now.  Best effort: where that cannot be written, it is not noted."""
        query = "UPDATE artifacts SET used = ? WHERE id = ?"
        with contextlib.suppress(KvswapError, sqlite3.Error), self._index.transaction() as db:
            db.execute(query, (time.time(), artifact))

    def pin(self, artifact: str, pinned: bool) -> None:
        """Pin an artifact, so that it is never collected, or unpin it.

        Raises `NotFound`, `StoreFull`, `LocalFault`.
        """
        if self.get_artifact(artifact) is None:
            raise NotFound(f"artifact {artifact} is not in the store", hint="kvswap ls")
        try:
            self._envelopes.pin(artifact, pinned)
        except OSError as error:
            raise as_kvswap_error(error, f"pinning {artifact}") from error
        self._index.write(lambda db: db.execute("UPDATE artifacts SET pinned = ? WHERE id = ?", (pinned, artifact)))

    def remove(self, artifact: str, *, durable: bool = True) -> None:
        """Unlist an artifact; its chunks go with the next collection.  Raises `NotFound`, `LocalFault`."""
        if self.get_artifact(artifact) is None:
            raise NotFound(f"artifact {artifact} is not in the store", hint="kvswap ls")
        try:
            self._envelopes.mark_removed(artifact, durable=durable)
        except OSError as error:
            raise as_kvswap_error(error, f"removing {artifact}") from error
        self._index.write(lambda db: db.execute("DELETE FROM artifacts WHERE id = ?", (artifact,)))
        self._rebuild.forget_removals([artifact])
        self._chunks.changed()
