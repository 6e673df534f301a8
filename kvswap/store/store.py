"""The store: chunks, artifacts, pins, quota, garbage collection, repair.

Guarantees:
* A chunk is listed only after its bytes, checked against their CID, are written whole: synced as well, or marked
  as not synced yet, and then checked again when the store is opened after a crash (`behind`).
* An artifact is *complete* only when every chunk that a reader of the whole document needs is listed.
* One process holds a store (`StoreLocked` for the second).
* What is pinned, held by a lease, or belongs to a complete unpinned artifact that still fits the
  quota is never collected.  Collection takes orphans first, then the artifact used longest ago.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import sqlite3
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvswap.core.errors import IntegrityError, NotFound, StoreFull, StoreLocked
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import Problems
from kvswap.store.behind import Behind
from kvswap.store.files import ChunkFile, ChunkFiles
from kvswap.store.index import Index

_CHECKED_KEPT = 65_536
_WATERMARK = 0.9  # of the quota: what a collection for want of room leaves at most
_BATCH = 500
_UNOWNED = "NOT EXISTS (SELECT 1 FROM artifact_chunks a WHERE a.cid = c.cid)"
_ORPHANS = f"SELECT cid, length FROM chunks c WHERE {_UNOWNED}"


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """What the index knows of an artifact, without parsing its manifest."""

    id: str
    document: str | None
    model: bytes
    label: str
    dtype: str
    tokens: int
    raw_bytes: int
    wire_bytes: int
    publisher: str
    expires: int
    added: float
    used: float
    pinned: bool
    complete: bool

    def to_json(self) -> dict[str, Any]:
        out = {name: getattr(self, name) for name in self.__slots__}
        out["artifact"] = out.pop("id")
        out["model"] = self.model.hex()
        return out


_COLUMNS = ", ".join(ArtifactRow.__slots__)


@dataclass(frozen=True, slots=True)
class StoreReport:
    """Outcome of `verify`: how many files were right, restored from none, set aside, or missing."""

    checked: int
    adopted: int
    quarantined: int
    missing: int
    incomplete_artifacts: int

    @property
    def clean(self) -> bool:
        return not (self.quarantined or self.missing)


class Store:
    """One node's chunks and artifacts.  Methods block; callers on an event loop use a thread."""

    def __init__(self, root: Path, quota_bytes: int, lock: int) -> None:
        self.root = root
        self._quota = quota_bytes
        self._lock = lock
        self._files = ChunkFiles(root)
        self._files.clear_temporary()
        self._index = Index(root / "index.sqlite3")
        self._leases: Counter[Cid] = Counter()
        self._checked: OrderedDict[Cid, tuple[int, int]] = OrderedDict()
        self._guard = threading.RLock()
        self._collecting = threading.Lock()
        self._reserved = 0  # bytes of writes under way
        (row,) = self._index.rows("SELECT COALESCE(SUM(length), 0) AS total FROM chunks")
        self._used = int(row["total"])
        self.problems = Problems()  # of the disk; the node shows them
        self._behind = Behind(self._sync, self._synced, self.problems)
        self._check_unsynced()
        self.generation = int(time.time() * 1000)  # grows with every change of what is here

    @classmethod
    def open(cls, root: Path, quota_bytes: int = 10**10) -> Store:
        """Open or create.  Raises `StoreLocked` when another process has it."""
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise StoreLocked(
                f"the store {root} is in use by another process",
                cause="a kvswap daemon already runs on this home",
                hint="kvswap status",
            ) from error
        try:
            return cls(root, quota_bytes, descriptor)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        self._behind.close()
        self._index.close()
        os.close(self._lock)

    # -- chunks ----------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes of listed chunks."""
        return self._used

    @property
    def quota_bytes(self) -> int:
        return self._quota

    def put_chunk(
        self,
        data: bytes | memoryview,
        cid: Cid | None = None,
        owner: mmap.mmap | None = None,
        arrived: Cid | None = None,
        behind: bool = False,
        cached: bool = False,
    ) -> Cid:
        """Store bytes; `cid`, when given, is what they must be.  Idempotent.

        `behind`: listed when they are written and synced soon after, for what can be had again; `cached`: through the
        page cache, for what is read soon.
        `owner` is the aligned memory that `data` lies at the beginning of, if it does (`store.direct`);
        `arrived` is the id of these very bytes, when the caller has computed it: then they are not hashed again.
        Raises `IntegrityError` before anything is written, `StoreFull` when the quota or the disk
        has no room even after collection.
        """
        actual = Cid.of(data) if arrived is None else arrived
        if cid is not None and actual != cid:
            raise IntegrityError(f"bytes offered as chunk {cid} are {actual}")
        if self.has_chunk(actual):
            return actual
        self._reserve(len(data))
        try:
            self._files.write(actual, data, owner, synced=not behind, cached=cached)
            with self._guard, self._index.transaction() as db:
                if not self._files.path(actual).exists():  # a collection may have taken an old orphan of this name
                    self._files.write(actual, data, owner, synced=not behind, cached=cached)
                added = _list_chunk(db, actual, len(data), synced=not behind)
                self._used += len(data) if added else 0
            if behind and added:
                self._behind.add(actual, len(data))
        finally:
            with self._guard:
                self._reserved -= len(data)
        return actual

    def _sync(self, cid: Cid) -> None:
        try:
            self._files.sync(cid)
        except FileNotFoundError:
            pass  # collected meanwhile
        except OSError:  # only now the disk says that it did not keep it
            self._forget(cid)
            self._files.remove(cid)

    def _synced(self, cids: Sequence[Cid]) -> None:
        with self._index.transaction() as db:
            db.executemany("UPDATE chunks SET synced = 1 WHERE cid = ?", [(cid.digest,) for cid in cids])

    def _check_unsynced(self) -> None:
        """What a crash left unsynced is here, or it is not: after a loss of power a file may be empty."""
        cids = [Cid(bytes(r["cid"])) for r in self._index.rows("SELECT cid FROM chunks WHERE NOT synced")]
        for cid in cids:
            try:
                with self._files.open(cid) as file:
                    right = file.id() == cid
            except FileNotFoundError:
                right = False
            if right:
                self._sync(cid)
            else:
                self._forget(cid)
                self._files.remove(cid)
        if cids:
            self._synced(cids)

    def has_chunk(self, cid: Cid) -> bool:
        return bool(self._index.rows("SELECT 1 FROM chunks WHERE cid = ?", cid.digest))

    def chunk_length(self, cid: Cid) -> int:
        """Bytes of a listed chunk.  Raises `NotFound`."""
        rows = self._index.rows("SELECT length FROM chunks WHERE cid = ?", cid.digest)
        if not rows:
            raise NotFound(f"chunk {cid} is not in the store")
        return int(rows[0]["length"])

    def missing(self, cids: Iterable[Cid]) -> list[Cid]:
        """Those that are not here, in order, each once."""
        wanted = list(dict.fromkeys(cids))
        have: set[bytes] = set()
        for start in range(0, len(wanted), 500):
            piece = wanted[start : start + 500]
            marks = ",".join("?" * len(piece))
            query = f"SELECT cid FROM chunks WHERE cid IN ({marks})"
            have |= {bytes(r["cid"]) for r in self._index.rows(query, *(c.digest for c in piece))}
        return [c for c in wanted if c.digest not in have]

    @contextmanager
    def open_chunk(self, cid: Cid) -> Iterator[ChunkFile]:
        """A chunk to read in pieces, checked whole before, not collected while it is open.

        A file that was found right is hashed again only when its length or time of change is another:
        a chunk that many peers ask for is hashed once, not once for each.  Readers hash all the same.
        Raises `NotFound`, or `IntegrityError` after setting a bad file aside.
        """
        if not self.has_chunk(cid):
            raise NotFound(f"chunk {cid} is not in the store")
        with self.lease([cid]), ExitStack() as stack:
            try:
                file = stack.enter_context(self._files.open(cid))
            except FileNotFoundError:
                self._forget(cid)
                raise NotFound(f"chunk {cid} is listed but its file is gone", cause="somebody deleted it") from None
            if self._checked.get(cid) != file.state:
                self._check(cid, file)
            yield file

    def get_chunk(self, cid: Cid) -> bytes:
        """The bytes, whole.  Raises as `open_chunk` does."""
        with self.open_chunk(cid) as file:
            return file.read()

    def check_chunk(self, cid: Cid) -> None:
        """Hash the file, whatever was found before.  Raises as `open_chunk` does."""
        with self._guard:
            self._checked.pop(cid, None)
        with self.open_chunk(cid):
            pass

    def _check(self, cid: Cid, file: ChunkFile) -> None:
        if file.id() != cid:
            self._forget(cid)
            self._files.set_aside(cid)
            raise IntegrityError(
                f"chunk {cid} on disk does not have its digest; it was set aside",
                cause="the disk, or somebody, changed the file",
                hint="kvswap fetch it again",
            )
        with self._guard:
            self._checked[cid] = file.state
            while len(self._checked) > _CHECKED_KEPT:
                self._checked.popitem(last=False)

    @property
    def chunks_directory(self) -> Path:
        """Where the files are, for readers that check the digests themselves (see `files.chunk_path`)."""
        return self._files.directory

    def _forget(self, cid: Cid) -> None:
        with self._guard, self._index.transaction() as db:
            row = db.execute("SELECT length FROM chunks WHERE cid = ?", (cid.digest,)).fetchone()
            if row is None:
                return
            db.execute("DELETE FROM chunks WHERE cid = ?", (cid.digest,))
            db.execute(
                "UPDATE artifacts SET complete = 0 WHERE id IN "
                "(SELECT artifact FROM artifact_chunks WHERE cid = ? AND needed)",
                (cid.digest,),
            )
            self._used -= int(row["length"])

    @contextmanager
    def lease(self, cids: Iterable[Cid] = ()) -> Iterator[Callable[[Cid], None]]:
        """While held, these chunks - and those passed to the yielded function - are not collected."""
        held: list[Cid] = []

        def hold(cid: Cid) -> None:
            with self._guard:
                held.append(cid)
                self._leases[cid] += 1

        for cid in cids:
            hold(cid)
        try:
            yield hold
        finally:
            with self._guard:
                self._leases.subtract(held)
                self._leases += Counter()  # drop zeros

    # -- artifacts -------------------------------------------------------------------------------

    def put_artifact(
        self,
        row: ArtifactRow,
        envelope: bytes,
        needed: Collection[Cid],
        others: Collection[Cid],
        chain: Sequence[bytes],
    ) -> bool:
        """List an artifact; True when all its `needed` chunks are here.  Idempotent; keeps pins.

        `others` belong to it as well and are kept if here, but nothing waits for them: windows of
        sliding layers that the document's end has left behind.
        """
        complete = not self.missing(needed)
        self.generation += 1
        values = {**{n: getattr(row, n) for n in row.__slots__}, "complete": complete, "envelope": envelope}
        columns = ", ".join(values)
        wanted = frozenset(needed)
        marks = ", ".join(f":{n}" for n in values)
        with self._index.transaction() as db:
            db.execute(
                f"INSERT INTO artifacts ({columns}) VALUES ({marks}) "
                "ON CONFLICT (id) DO UPDATE SET complete = excluded.complete, used = excluded.used",
                values,
            )
            db.executemany(
                "INSERT OR IGNORE INTO artifact_chunks VALUES (?, ?, ?)",
                [(row.id, c.digest, c in wanted) for c in dict.fromkeys([*needed, *others])],
            )
            db.executemany(
                "INSERT OR IGNORE INTO prefixes VALUES (?, ?, ?)",
                [(digest, row.id, block) for block, digest in enumerate(chain)],
            )
        return complete

    def get_artifact(self, artifact: str) -> ArtifactRow | None:
        rows = self._index.rows(f"SELECT {_COLUMNS} FROM artifacts WHERE id = ?", artifact)
        return _row(rows[0]) if rows else None

    def lookup(self, reference: str | Cid) -> list[ArtifactRow]:
        """What answers to a reference: the artifact of an id, or those of a document, newest first."""
        if isinstance(reference, Cid):
            row = self.get_artifact(str(reference))
            return [row] if row else []
        return self.artifacts(reference)

    def envelope(self, artifact: str) -> bytes | None:
        rows = self._index.rows("SELECT envelope FROM artifacts WHERE id = ?", artifact)
        return bytes(rows[0]["envelope"]) if rows else None

    def envelope_length(self, artifact: str) -> int:
        """How many bytes an envelope has, without reading it; 0 where there is none."""
        rows = self._index.rows("SELECT length(envelope) n FROM artifacts WHERE id = ?", artifact)
        return int(rows[0]["n"]) if rows else 0

    def artifacts(self, document: str | None = None, publisher: str | None = None) -> list[ArtifactRow]:
        """All, newest first; or those of one document, or of one publisher."""
        wanted = {"document": document, "publisher": publisher}
        given = {name: value for name, value in wanted.items() if value}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        query = f"SELECT {_COLUMNS} FROM artifacts WHERE {where} ORDER BY added DESC"
        return [_row(r) for r in self._index.rows(query, *given.values())]

    def longest_prefix(self, chain: Sequence[bytes]) -> list[tuple[ArtifactRow, int]]:
        """Complete artifacts that share a beginning with `chain`, as (artifact, shared blocks), longest first.

        Chain digests include everything before them, so the last one that matches decides.
        """
        best: dict[str, int] = {}
        for start in range(0, len(chain), 500):
            piece = list(chain[start : start + 500])
            marks = ",".join("?" * len(piece))
            query = f"SELECT artifact, block FROM prefixes WHERE chain IN ({marks})"
            for r in self._index.rows(query, *piece):
                best[r["artifact"]] = max(best.get(r["artifact"], 0), int(r["block"]) + 1)
        found = [(row, blocks) for name, blocks in best.items() if (row := self.get_artifact(name)) and row.complete]
        return sorted(found, key=lambda pair: -pair[1])

    def artifacts_with(self, cid: Cid) -> list[ArtifactRow]:
        """Return the artifacts that a chunk belongs to."""
        query = f"SELECT {_COLUMNS} FROM artifacts WHERE id IN (SELECT artifact FROM artifact_chunks WHERE cid = ?)"
        return [_row(r) for r in self._index.rows(query, cid.digest)]

    def chain_digests(
        self, limit: int, without: Collection[str] = (), publishers: Collection[str] = ()
    ) -> tuple[list[bytes], float]:
        """Return chain digests of complete artifacts that have not expired, the newest artifacts' first, and until
        when (Unix seconds) none of them expires.

        Left out are the artifacts `without`, all of the `publishers`, and what was added later than now.
        """
        now = time.time()
        query = (
            "SELECT a.id, a.publisher, a.expires, p.chain FROM artifacts a JOIN prefixes p ON p.artifact = a.id "
            "WHERE a.complete AND a.expires > ? AND a.added <= ? ORDER BY a.added DESC LIMIT ?"
        )
        digests, until = [], math.inf
        for row in self._index.rows(query, now, now + LIMITS.clock_skew_seconds, limit):
            if row["id"] not in without and row["publisher"] not in publishers:
                digests.append(bytes(row["chain"]))
                until = min(until, row["expires"])
        return digests, until

    def touch(self, artifact: str) -> None:
        with self._index.transaction() as db:
            db.execute("UPDATE artifacts SET used = ? WHERE id = ?", (time.time(), artifact))

    def pin(self, artifact: str, pinned: bool) -> None:
        """Raises `NotFound`."""
        with self._index.transaction() as db:
            if not db.execute("UPDATE artifacts SET pinned = ? WHERE id = ?", (pinned, artifact)).rowcount:
                raise NotFound(f"artifact {artifact} is not in the store", hint="kvswap ls")

    def remove(self, artifact: str) -> None:
        """Unlist an artifact; its chunks go with the next collection.  Raises `NotFound`."""
        self.generation += 1
        with self._index.transaction() as db:
            if not db.execute("DELETE FROM artifacts WHERE id = ?", (artifact,)).rowcount:
                raise NotFound(f"artifact {artifact} is not in the store", hint="kvswap ls")

    # -- keeping house ---------------------------------------------------------------------------

    def collect(self, target_bytes: int | None = None) -> int:
        """Remove orphans, then unpinned artifacts until at most `target_bytes` are used.

        What has expired goes first, then what was used longest ago.  Returns the bytes freed.  Without a
        target only orphans go.  In short steps: whoever wants a lease or a write meanwhile waits for one.
        """
        with self._collecting:
            before = self._used
            self._drop(self._index.rows(_ORPHANS))
            if target_bytes is not None:
                query = "SELECT id FROM artifacts WHERE pinned = 0 ORDER BY expires > ?, used"
                for victim in self._index.rows(query, time.time()):
                    if self._used <= target_bytes:
                        break
                    self._evict(victim["id"])
            return before - self._used

    def _evict(self, artifact: str) -> None:
        """Remove an artifact and the chunks that nobody else has, unless one of them is in use."""
        query = "SELECT cid FROM artifact_chunks WHERE artifact = ?"
        with self._guard:
            rows = self._index.rows(query, artifact)
            if any(self._leases[Cid(bytes(r["cid"]))] > 0 for r in rows):
                return
            with contextlib.suppress(NotFound):  # removed by hand in the same moment
                self.remove(artifact)
        alone: list[sqlite3.Row] = []
        for start in range(0, len(rows), _BATCH):
            piece = [bytes(r["cid"]) for r in rows[start : start + _BATCH]]
            marks = ",".join("?" * len(piece))
            alone += self._index.rows(f"{_ORPHANS} AND cid IN ({marks})", *piece)
        self._drop(alone)

    def _drop(self, rows: Sequence[sqlite3.Row]) -> None:
        """Unlist and delete orphans that are not in use."""
        for start in range(0, len(rows), _BATCH):
            with self._guard:
                piece = [(Cid(bytes(r["cid"])), int(r["length"])) for r in rows[start : start + _BATCH]]
                piece = [(cid, length) for cid, length in piece if self._leases[cid] <= 0]
                with self._index.transaction() as db:
                    gone = [
                        (cid, length)
                        for cid, length in piece
                        # an artifact may have taken it since the rows were read
                        if db.execute(f"DELETE FROM chunks AS c WHERE cid = ? AND {_UNOWNED}", (cid.digest,)).rowcount
                    ]
                for cid, length in gone:
                    self._files.remove(cid)
                    self._checked.pop(cid, None)
                    self._used -= length

    def _reserve(self, size: int) -> None:
        """Take room before writing: several writers at once must not overshoot together."""
        with self._guard:
            room = self._used + self._reserved + size <= self._quota
        if not room:
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
        """Hash every file again.  Right but unlisted files are adopted, wrong ones set aside."""
        listed = {Cid(bytes(r["cid"])) for r in self._index.rows("SELECT cid FROM chunks")}
        checked = adopted = quarantined = missing = 0
        for cid in self._files.all():
            try:
                with self._files.open(cid) as file:
                    found, length = file.id(), file.length
            except FileNotFoundError:
                continue  # collected since the files were listed
            if found != cid:
                self._forget(cid)
                self._files.set_aside(cid)
                quarantined += 1
            elif cid not in listed:
                with self._guard, self._index.transaction() as db:
                    if not self._files.path(cid).exists():
                        continue  # or since it was read
                    # Listed since the index was read: then it is counted already.
                    added = _list_chunk(db, cid, length, synced=False)
                    self._used += length if added else 0
                if added:
                    self._behind.add(cid, length)
                adopted += added
            checked += 1
        for cid in listed:
            if self.has_chunk(cid) and not self._files.path(cid).exists():
                self._forget(cid)
                missing += 1
        self._recount_complete()
        (row,) = self._index.rows("SELECT COUNT(*) AS n FROM artifacts WHERE complete = 0")
        return StoreReport(checked, adopted, quarantined, missing, int(row["n"]))

    def _recount_complete(self) -> None:
        with self._index.transaction() as db:
            db.execute(
                "UPDATE artifacts SET complete = NOT EXISTS (SELECT 1 FROM artifact_chunks a "
                "LEFT JOIN chunks c ON c.cid = a.cid WHERE a.artifact = artifacts.id AND a.needed AND c.cid IS NULL)"
            )


def _list_chunk(db: sqlite3.Connection, cid: Cid, length: int, *, synced: bool) -> int:
    """1, or 0 when it was listed already."""
    values = (cid.digest, length, time.time(), synced)
    return db.execute("INSERT OR IGNORE INTO chunks VALUES (?, ?, ?, ?)", values).rowcount


def _row(row: sqlite3.Row) -> ArtifactRow:
    values = dict(row)
    values["pinned"] = bool(values["pinned"])
    values["complete"] = bool(values["complete"])
    values["model"] = bytes(values["model"])
    return ArtifactRow(**values)
