"""The store: chunks, artifacts, pins, quota, garbage collection, repair.

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
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

from kvswap.core.errors import IntegrityError, KvswapError, NotFound, StoreFull
from kvswap.core.failures import Misplaced, as_kvswap_error
from kvswap.core.ids import Cid
from kvswap.core.upkeep import Problems
from kvswap.store.artifacts import Artifacts
from kvswap.store.envelopes import Envelopes
from kvswap.store.files import ChunkFile, ChunkFiles, wrong_chunk
from kvswap.store.index import Index
from kvswap.store.leases import Leases
from kvswap.store.listing import ArtifactRow, Listing, Reader, StoreReport
from kvswap.store.lock import hold
from kvswap.store.rebuild import Rebuild, list_artifact, recount
from kvswap.store.tables import ROWS_AT_ONCE
from kvswap.store.write_behind import WriteBehind

T = TypeVar("T")
_CHECKED_KEPT = 65_536
_WATERMARK = 0.9  # of the quota: what a collection for want of room leaves at most
_CHUNKS = "chunks"  # in `Problems`


class Store(Artifacts):
    """The chunks and artifacts of one node.  Methods block; callers on an event loop use a thread."""

    def __init__(self, root: Path, quota_bytes: int, lock: int) -> None:
        self.root = root
        self._quota = quota_bytes
        self._lock = lock
        self.generation = int(time.time() * 1000)  # grows after every change of what is here
        self.problems = Problems()  # of this disk; `kvswap status` shows them
        self._files = ChunkFiles(root)
        self._envelopes = Envelopes(root)
        with contextlib.suppress(OSError):
            self._files.clear_temporary()
        self._index = Index(root / "index.sqlite3", on_problem=self._note_problem, cache=True)
        self._leases = Leases()
        self._checked: OrderedDict[Cid, tuple[int, int]] = OrderedDict()
        self._guard = threading.RLock()  # of writers; nothing on an event loop waits for it
        self._collecting = threading.Lock()
        self._reserved = 0  # bytes of writes under way
        self._rebuild = Rebuild(self._index, self._files, self._envelopes, self.problems)
        self._reader: Reader | None = None
        self._looked = False
        self._remade = self._index.empty
        if self._remade:
            self._rebuild.list_files()
        self._rebuild.finish_removals()
        self._recount_used()
        self._index.remake = self._remake
        self._write_behind = WriteBehind(self._sync, self._synced, self.problems)
        self._check_unsynced()
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
        self._write_behind.close()
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
            self._changed()
        if adopted and self._remade:
            self.problems.note("index", f"the index was not there: it was made anew from {adopted} manifests on disk")

    def maintain(self) -> None:
        """Repair what the disk allows again: call it now and then, in a thread.  Raises `KvswapError`."""
        try:
            gone = not self._files.directory.exists()
            self._files.make_directories()
            if gone:  # somebody removed it: what is listed is not here
                self._forget_missing()
            self._relock()
            if self._index.maintain():
                self._rebuild.forget_removals(self._envelopes.removed_artifacts())
            if self._rebuild.pending:
                self._rebuild.keep()
            if self._rebuild.put_off and self._reader is not None and self._rebuild.adopt(self._reader):
                self._changed()
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
        self._recount_used()
        self._changed()

    def _recount_used(self) -> None:
        (row,) = self._index.rows("SELECT COALESCE(SUM(length), 0) AS total FROM chunks")
        self._used = int(row["total"])

    def _relock(self) -> None:
        """Hold the lock where a second process looks for it, when somebody removed the file."""
        path = self.root / "lock"
        with contextlib.suppress(OSError):
            if not path.exists() or not os.path.samestat(path.stat(), os.fstat(self._lock)):
                old, self._lock = self._lock, hold(path, self.root)
                os.close(old)

    def _changed(self) -> None:
        """Increase `generation`, after COMMIT: whoever sees the new number sees what is new."""
        with self._guard:
            self.generation += 1

    # -- chunks ----------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """The bytes of all listed chunks."""
        return self._used

    @property
    def quota_bytes(self) -> int:
        """The bytes of chunks that the store may hold."""
        return self._quota

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
        actual = Cid.of(data) if arrived is None else arrived
        if cid is not None and actual != cid:
            raise IntegrityError(f"bytes offered as chunk {cid} are {actual}")
        self._leases.wait_deleted(actual)
        if self.has_chunk(actual):
            return actual
        self._reserve(len(data))
        try:
            self._files.write(actual, data, owner, synced=not write_behind, cached=cached)
            with self._guard:
                if self._files.gone(actual):  # a collection may have taken an old orphan of this name
                    self._files.write(actual, data, owner, synced=not write_behind, cached=cached)
                added = self._list_chunk(actual, len(data), synced=not write_behind)
            if write_behind and added:
                self._write_behind.add(actual, len(data))
        finally:
            with self._guard:
                self._reserved -= len(data)
        return actual

    def _sync(self, cid: Cid) -> None:
        """Make a chunk durable; what the disk did not keep is forgotten.  Raises `KvswapError` where it cannot ask."""
        try:
            self._files.sync(cid)
        except FileNotFoundError:
            pass  # collected meanwhile
        except OSError:  # only now the disk says that it did not keep it
            self._forget(cid)
            self._discard(cid)

    def _whole(self, cid: Cid) -> int | None:
        """Return the length of a chunk's file; None where what lies there is not the chunk.

        Raises `FileNotFoundError`, and `KvswapError` where this machine cannot open or read it now: that says nothing
        of the chunk, which stays as it is.
        """
        try:
            with self._files.open(cid) as file:
                return file.length if file.id() == cid else None
        except FileNotFoundError:
            raise
        except Misplaced:
            return None
        except OSError as error:
            raise as_kvswap_error(error, f"reading chunk {cid}") from error

    def _discard(self, cid: Cid) -> None:
        """Delete a file that is of no use; where it cannot be deleted it stays, and nobody lists it."""
        with contextlib.suppress(OSError):
            self._files.remove(cid)

    def _synced(self, cids: Sequence[Cid]) -> None:
        digests = [(cid.digest,) for cid in cids]
        self._index.write(lambda db: db.executemany("UPDATE chunks SET synced = 1 WHERE cid = ?", digests))

    def _check_unsynced(self) -> None:
        """Check the chunks that a crash left unsynced: after a loss of power a file may be empty, or gone."""
        cids = [Cid(bytes(r["cid"])) for r in self._index.rows("SELECT cid FROM chunks WHERE NOT synced")]
        done = []
        for cid in cids:
            try:
                right = self._whole(cid) is not None
                if right:
                    self._sync(cid)
            except FileNotFoundError:
                right = False
            except KvswapError as error:  # it stays marked, and is looked at when the store is opened next
                self.problems.note(_CHUNKS, error)
                continue
            if not right:
                self._forget(cid)
                self._discard(cid)
            done.append(cid)
        if done:
            self._synced(done)

    def has_chunk(self, cid: Cid) -> bool:
        """Return True if a chunk is listed."""
        return bool(self._index.rows("SELECT 1 FROM chunks WHERE cid = ?", cid.digest))

    def chunk_length(self, cid: Cid) -> int:
        """Return the length of a listed chunk in bytes.  Raises `NotFound`."""
        rows = self._index.rows("SELECT length FROM chunks WHERE cid = ?", cid.digest)
        if not rows:
            raise NotFound(f"chunk {cid} is not in the store")
        return int(rows[0]["length"])

    def missing(self, cids: Iterable[Cid]) -> list[Cid]:
        """List those of the chunks that are not in the store, in order, each once."""
        wanted = list(dict.fromkeys(cids))
        have: set[bytes] = set()
        for start in range(0, len(wanted), ROWS_AT_ONCE):
            piece = wanted[start : start + ROWS_AT_ONCE]
            marks = ",".join("?" * len(piece))
            query = f"SELECT cid FROM chunks WHERE cid IN ({marks})"
            have |= {bytes(r["cid"]) for r in self._index.rows(query, *(c.digest for c in piece))}
        return [c for c in wanted if c.digest not in have]

    @contextmanager
    def open_chunk(self, cid: Cid) -> Iterator[ChunkFile]:
        """Open a chunk to read in pieces, checked whole before, not collected while it is open.

        A file that was found right is hashed again only when its length or time of change is another:
        a chunk that many peers request is hashed once, not once for each.  Readers hash all the same.
        Raises `NotFound`, `IntegrityError` after setting a bad file aside, or `LocalFault` where the disk refuses.
        """
        if not self.has_chunk(cid):
            raise NotFound(f"chunk {cid} is not in the store")
        with self.lease([cid]), ExitStack() as stack:
            try:
                file = stack.enter_context(self._files.open(cid))
                if self._checked.get(cid) != file.state:
                    self._check(cid, file)
            except FileNotFoundError:
                self._forget(cid)
                raise NotFound(f"chunk {cid} is listed but its file is gone", cause="somebody deleted it") from None
            except Misplaced:
                self._wrong(cid)
            except OSError as error:
                raise as_kvswap_error(error, f"reading chunk {cid}") from error
            yield file

    def get_chunk(self, cid: Cid) -> bytes:
        """Return the bytes of a chunk, whole and checked.  Raises as `open_chunk` does."""
        with self.open_chunk(cid) as file:
            return file.read()

    def check_chunk(self, cid: Cid) -> None:
        """Hash the file of a chunk, whatever was found before.  Raises as `open_chunk` does."""
        with self._guard:
            self._checked.pop(cid, None)
        with self.open_chunk(cid):
            pass

    def _check(self, cid: Cid, file: ChunkFile) -> None:
        if file.id() != cid:
            self._wrong(cid)
        with self._guard:
            self._checked[cid] = file.state
            while len(self._checked) > _CHECKED_KEPT:
                self._checked.popitem(last=False)

    def _wrong(self, cid: Cid) -> NoReturn:
        self._forget(cid)
        self._files.set_aside(cid)
        raise wrong_chunk(cid, "on disk does not have its digest; it was set aside")

    @property
    def chunks_directory(self) -> Path:
        """The directory of chunk files, for readers that check the digests themselves (see `files.chunk_path`)."""
        return self._files.directory

    def _list_chunk(self, cid: Cid, length: int, *, synced: bool) -> bool:
        """List a file; False when it was listed already.  With the guard held."""
        values = (cid.digest, length, time.time(), synced)
        query = "INSERT OR IGNORE INTO chunks (cid, length, added, synced) VALUES (?, ?, ?, ?)"
        added = bool(self._index.write(lambda db: db.execute(query, values).rowcount))
        self._used += length if added else 0
        return added

    def _forget(self, cid: Cid) -> None:
        def forget(db: sqlite3.Connection) -> int:
            row = db.execute("SELECT length FROM chunks WHERE cid = ?", (cid.digest,)).fetchone()
            if row is None:
                return 0
            db.execute("DELETE FROM chunks WHERE cid = ?", (cid.digest,))
            db.execute(
                "UPDATE artifacts SET complete = 0 WHERE id IN "
                "(SELECT artifact FROM artifact_chunks WHERE cid = ? AND needed)",
                (cid.digest,),
            )
            return int(row["length"])

        with self._guard:
            self._used -= self._index.write(forget)
            self._checked.pop(cid, None)
            self._changed()

    def lease(self, cids: Iterable[Cid] = ()) -> AbstractContextManager[Callable[[Cid], None]]:
        """Hold these chunks, and those passed to the yielded function, so that they are not collected meanwhile.

        It waits for nothing: it may be taken on an event loop.
        """
        return self._leases.lease(cids)

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
                self._make_durable([*needed, *others])
            if durable or not self._envelopes.has(row.id):
                self._envelopes.write(row.id, envelope, added=row.added, used=row.used, durable=durable)
                self._envelopes.forget(row.id)
        except OSError as error:
            raise as_kvswap_error(error, f"writing the manifest of {row.id}") from error
        complete = self._index.write(lambda db: list_artifact(db, listing))
        self._changed()
        return complete

    def _make_durable(self, cids: Sequence[Cid]) -> None:
        """Sync files that were written behind, and the directories that name them."""
        unsynced: list[Cid] = []
        here: list[Cid] = []
        for piece in _pieces(list(dict.fromkeys(cids))):
            marks = ",".join("?" * len(piece))
            query = f"SELECT cid, synced FROM chunks WHERE cid IN ({marks})"
            for r in self._index.rows(query, *(c.digest for c in piece)):
                here.append(Cid(bytes(r["cid"])))
                if not r["synced"]:
                    unsynced.append(here[-1])
        for cid in unsynced:
            self._sync(cid)
        if unsynced:
            self._synced(unsynced)
        self._files.sync_names(here)

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
        self._changed()

    # -- keeping house ---------------------------------------------------------------------------

    def collect(self, target_bytes: int | None = None) -> int:
        """Delete chunks of no artifact, then unpinned artifacts until at most `target_bytes` are used.

        What has expired goes first, then what was used longest ago.  Returns the bytes freed.  Without a
        target only orphans go.  It works in short steps: whoever wants to write meanwhile waits for one.
        """
        with self._collecting:
            before = self._used
            self._drop(self._index.rows("SELECT cid, length FROM chunks WHERE owners = 0"))
            if target_bytes is not None:
                query = "SELECT id FROM artifacts WHERE pinned = 0 ORDER BY expires > ?, used"
                for victim in self._index.rows(query, time.time()):
                    if self._used <= target_bytes:
                        break
                    self._evict(victim["id"])
            freed = before - self._used
        if freed and self._index.detached:
            with contextlib.suppress(KvswapError):
                self.maintain()  # there may be room again for what is only in memory
        return freed

    def _evict(self, artifact: str) -> None:
        """Remove an artifact and the chunks that nobody else has, unless one of them is in use."""
        query = "SELECT cid FROM artifact_chunks WHERE artifact = ?"
        cids = [Cid(bytes(r["cid"])) for r in self._index.rows(query, artifact)]
        with self._leases.free(cids, together=True) as free:
            if len(free) < len(cids):
                return
            with contextlib.suppress(NotFound):  # removed by hand in the same moment
                self.remove(artifact, durable=False)
        alone: list[sqlite3.Row] = []
        for piece in _pieces(cids):
            marks = ",".join("?" * len(piece))
            query = f"SELECT cid, length FROM chunks WHERE owners = 0 AND cid IN ({marks})"
            alone += self._index.rows(query, *(cid.digest for cid in piece))
        self._drop(alone)

    def _drop(self, rows: Sequence[sqlite3.Row]) -> None:
        """Unlist and delete orphans that are not in use.  Raises `LocalFault`; then they stay."""
        for piece in _pieces(rows):
            lengths = {Cid(bytes(r["cid"])): int(r["length"]) for r in piece}
            with self._leases.free(lengths) as free:
                self._drop_free(free, lengths)

    def _drop_free(self, free: Sequence[Cid], lengths: dict[Cid, int]) -> None:
        def unlist(db: sqlite3.Connection) -> list[Cid]:
            # an artifact may have taken it since the rows were read
            query = "DELETE FROM chunks WHERE cid = ? AND owners = 0"
            return [cid for cid in free if db.execute(query, (cid.digest,)).rowcount]

        with self._guard:
            gone = self._index.write(unlist)
            for number, cid in enumerate(gone):
                try:
                    self._files.remove(cid)
                except OSError as error:
                    for left in gone[number:]:
                        self._list_chunk(left, lengths[left], synced=True)
                    self._used -= sum(lengths[left] for left in gone[number:])
                    raise as_kvswap_error(error, "deleting chunks") from error
                self._checked.pop(cid, None)
                self._used -= lengths[cid]

    def _reserve(self, size: int) -> None:
        """Take room before writing: several writers at once must not overshoot together."""
        with self._guard:
            fits = self._used + self._reserved + size <= self._quota
        if not fits:
            # Below the quota by a margin, so that not every chunk that follows collects again.
            self.collect(max(0, int(_WATERMARK * self._quota) - self._reserved - size))
        with self._guard:
            if self._used + self._reserved + size > self._quota:
                raise StoreFull(
                    f"no room for {size} bytes: {self._used} of {self._quota} are used by what is pinned or in use",
                    cause="the quota is reached",
                    hint="kvswap gc, kvswap rm, or KVSWAP_QUOTA_BYTES",
                )
            self._reserved += size

    def verify(self) -> StoreReport:
        """Hash every file again: right but unlisted files are adopted, wrong ones set aside.

        What cannot be read stays as it is: the first of these is raised, as `LocalFault`, when all others are done.
        """
        checked = adopted = quarantined = 0
        unread: KvswapError | None = None
        missing = self._forget_missing()
        with contextlib.suppress(KvswapError):
            self.maintain()
        for cid in self._files.all():
            try:
                length = self._whole(cid)
            except FileNotFoundError:
                continue  # collected since the files were listed
            except KvswapError as error:
                unread = unread or error
                continue
            checked += 1
            if length is None:
                self._forget(cid)
                self._files.set_aside(cid)
                quarantined += 1
            elif not self.has_chunk(cid):
                adopted += self._adopt(cid, length)
        missing += self._forget_missing()
        self._rebuild.keep()
        if self._reader is not None:
            self._rebuild.adopt(self._reader)
        self._index.write(recount)
        self._changed()
        if unread is not None:
            raise unread
        self.problems.clear_one(_CHUNKS)
        (row,) = self._index.rows("SELECT COUNT(*) AS n FROM artifacts WHERE complete = 0")
        return StoreReport(checked, adopted, quarantined, missing, int(row["n"]))

    def _adopt(self, cid: Cid, length: int) -> bool:
        with self._guard:
            if self._files.gone(cid):
                return False  # collected since it was read
            added = self._list_chunk(cid, length, synced=False)
        if added:
            self._write_behind.add(cid, length)
        return added

    def _forget_missing(self) -> int:
        """Unlist chunks whose files are gone, and return how many there were."""
        missing = 0
        for cid in self._listed():
            if self.has_chunk(cid) and self._files.gone(cid):
                self._forget(cid)
                missing += 1
        return missing

    def _listed(self) -> Iterator[Cid]:
        """Iterate over every listed chunk, a page at a time: of many, no list is worth its memory."""
        after = b""
        while rows := self._index.rows("SELECT cid FROM chunks WHERE cid > ? ORDER BY cid LIMIT 1000", after):
            for row in rows:
                yield Cid(bytes(row["cid"]))
            after = bytes(rows[-1]["cid"])


def _pieces(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), ROWS_AT_ONCE):
        yield items[start : start + ROWS_AT_ONCE]
