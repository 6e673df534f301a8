"""The chunks of the store: which are listed, in the index and as files, and reading them.

Whatever changes both, the index and a file, does it under one guard that this file has: a chunk is listed, found
to be nobody's and deleted under the same lock, whoever does it (`ingest`, `collector`, `check`).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from kvswap.core.errors import NotFound
from kvswap.core.failures import Misplaced, as_kvswap_error
from kvswap.core.ids import Cid
from kvswap.store.files import ChunkFile, ChunkFiles, wrong_chunk
from kvswap.store.index import Index
from kvswap.store.leases import Leases
from kvswap.store.tables import ROWS_AT_ONCE

_CHECKED_KEPT = 65_536


class ListedChunks:
    """The chunks of one store.  Methods block; callers on an event loop use a thread."""

    def __init__(self, index: Index, files: ChunkFiles) -> None:
        self.index, self.files = index, files
        self.leases = Leases()
        self.guard = threading.RLock()  # of writers; nothing on an event loop waits for it
        self.generation = int(time.time() * 1000)  # grows after every change of what is here
        self.used_bytes = 0  # of all listed chunks
        self._checked: OrderedDict[Cid, tuple[int, int]] = OrderedDict()

    def changed(self) -> None:
        """Increase `generation`, after COMMIT: whoever sees the new number sees what is new."""
        with self.guard:
            self.generation += 1

    def count_used(self) -> None:
        """Count the bytes of all listed chunks anew."""
        (row,) = self.index.rows("SELECT COALESCE(SUM(length), 0) AS total FROM chunks")
        self.used_bytes = int(row["total"])

    # -- what is listed ----------------------------------------------------------------------------

    def has(self, cid: Cid) -> bool:
        """Return True if a chunk is listed."""
        return bool(self.index.rows("SELECT 1 FROM chunks WHERE cid = ?", cid.digest))

    def length(self, cid: Cid) -> int:
        """Return the length of a listed chunk in bytes.  Raises `NotFound`."""
        rows = self.index.rows("SELECT length FROM chunks WHERE cid = ?", cid.digest)
        if not rows:
            raise NotFound(f"chunk {cid} is not in the store")
        return int(rows[0]["length"])

    def missing(self, cids: Iterable[Cid]) -> list[Cid]:
        """List those of the chunks that are not in the store, in order, each once."""
        wanted = list(dict.fromkeys(cids))
        have = {bytes(r["cid"]) for r in self.rows("SELECT cid FROM chunks WHERE cid IN ({})", wanted)}
        return [c for c in wanted if c.digest not in have]

    def rows(self, query: str, cids: Sequence[Cid]) -> Iterator[sqlite3.Row]:
        """Iterate over what a query returns that has `{}` for these CIDs, which are asked for in pieces."""
        for start in range(0, len(cids), ROWS_AT_ONCE):
            piece = cids[start : start + ROWS_AT_ONCE]
            yield from self.index.rows(query.format(",".join("?" * len(piece))), *(c.digest for c in piece))

    def listed(self) -> Iterator[Cid]:
        """Iterate over every listed chunk, a page at a time: of many, no list is worth its memory."""
        after = b""
        while rows := self.index.rows("SELECT cid FROM chunks WHERE cid > ? ORDER BY cid LIMIT 1000", after):
            for row in rows:
                yield Cid(bytes(row["cid"]))
            after = bytes(rows[-1]["cid"])

    # -- reading -----------------------------------------------------------------------------------

    @contextmanager
    def open(self, cid: Cid) -> Iterator[ChunkFile]:
        """Open a chunk to read in pieces, checked whole before, not collected while it is open.

        A file that was found right is hashed again only when its length or time of change is another:
        a chunk that many peers request is hashed once, not once for each.  Readers hash all the same.
        Raises `NotFound`, `IntegrityError` after setting a bad file aside, or `LocalFault` where the disk refuses.
        """
        if not self.has(cid):
            raise NotFound(f"chunk {cid} is not in the store")
        with self.leases.lease([cid]), ExitStack() as stack:
            try:
                file = stack.enter_context(self.files.open(cid))
                if self._checked.get(cid) != file.state:
                    self._check(cid, file)
            except FileNotFoundError:
                self.forget(cid)
                raise NotFound(f"chunk {cid} is listed but its file is gone", cause="somebody deleted it") from None
            except Misplaced:
                self._wrong(cid)
            except OSError as error:
                raise as_kvswap_error(error, f"reading chunk {cid}") from error
            yield file

    def check(self, cid: Cid) -> None:
        """Hash the file of a chunk, whatever was found before.  Raises as `open` does."""
        with self.guard:
            self._checked.pop(cid, None)
        with self.open(cid):
            pass

    def whole(self, cid: Cid) -> int | None:
        """Return the length of a chunk's file, listed or not; None where what lies there is not the chunk.

        Raises `FileNotFoundError`, and `KvswapError` where this machine cannot open or read it now: that says nothing
        of the chunk, which stays as it is.
        """
        try:
            with self.files.open(cid) as file:
                return file.length if file.id() == cid else None
        except FileNotFoundError:
            raise
        except Misplaced:
            return None
        except OSError as error:
            raise as_kvswap_error(error, f"reading chunk {cid}") from error

    def _check(self, cid: Cid, file: ChunkFile) -> None:
        if file.id() != cid:
            self._wrong(cid)
        with self.guard:
            self._checked[cid] = file.state
            while len(self._checked) > _CHECKED_KEPT:
                self._checked.popitem(last=False)

    def _wrong(self, cid: Cid) -> NoReturn:
        self.forget(cid)
        self.files.set_aside(cid)
        raise wrong_chunk(cid, "on disk does not have its digest; it was set aside")

    # -- listing -----------------------------------------------------------------------------------

    def add(self, cid: Cid, length: int, *, synced: bool) -> bool:
        """List a file; return False when it was listed already.  Call it with the guard held."""
        values = (cid.digest, length, time.time(), synced)
        query = "INSERT OR IGNORE INTO chunks (cid, length, added, synced) VALUES (?, ?, ?, ?)"
        added = bool(self.index.write(lambda db: db.execute(query, values).rowcount))
        self.used_bytes += length if added else 0
        return added

    def forget(self, cid: Cid) -> None:
        """Unlist a chunk whose file is gone or wrong: the artifacts that need it are not complete any more."""

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

        with self.guard:
            self.used_bytes -= self.index.write(forget)
            self._checked.pop(cid, None)
            self.changed()

    def forget_missing(self) -> int:
        """Unlist chunks whose files are gone, and return how many there were."""
        missing = 0
        for cid in self.listed():
            if self.has(cid) and self.files.gone(cid):
                self.forget(cid)
                missing += 1
        return missing

    def delete_orphans(self, cids: Sequence[Cid], lengths: dict[Cid, int]) -> None:
        """Unlist and delete those of the chunks that no artifact has, and nobody uses, as the caller made sure.

        Raises `LocalFault`; then those that are still there stay listed.
        """

        def unlist(db: sqlite3.Connection) -> list[Cid]:
            # an artifact may have taken it since the rows were read
            query = "DELETE FROM chunks WHERE cid = ? AND owners = 0"
            return [cid for cid in cids if db.execute(query, (cid.digest,)).rowcount]

        with self.guard:
            gone = self.index.write(unlist)
            for number, cid in enumerate(gone):
                try:
                    self.files.remove(cid)
                except OSError as error:
                    for left in gone[number:]:
                        self.add(left, lengths[left], synced=True)
                    self.used_bytes -= sum(lengths[left] for left in gone[number:])
                    raise as_kvswap_error(error, "deleting chunks") from error
                self._checked.pop(cid, None)
                self.used_bytes -= lengths[cid]
