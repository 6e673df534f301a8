"""Rebuilding the index: what it says of chunks and artifacts can be made anew from their files.

Chunk files have the digest as their name, envelopes are beside them (`envelopes`), so an index that is damaged or gone
costs nothing but the time to read the directories; a chunk is hashed when it is read, as ever.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

import msgspec

from kvswap.core.errors import IntegrityError, KvswapError, MalformedManifest, Untrusted
from kvswap.core.failures import Misplaced, as_kvswap_error, is_own, record
from kvswap.core.ids import Cid
from kvswap.core.upkeep import Problems
from kvswap.store.envelopes import Envelopes, StoredEnvelope
from kvswap.store.files import ChunkFiles
from kvswap.store.index import Index
from kvswap.store.listing import COLUMNS, Listing, Reader

_log = logging.getLogger(__name__)
_BATCH = 1_000
_PART, _MANIFESTS = "artifacts", "manifests"  # in `Problems`


class Rebuild:
    """The repair of index and disk, after which both say the same."""

    def __init__(self, index: Index, files: ChunkFiles, envelopes: Envelopes, problems: Problems) -> None:
        self._index, self._files, self._envelopes, self._problems = index, files, envelopes, problems
        self.pending = False  # envelopes that only the index has, as the disk took none
        self.put_off = False  # envelopes that could not be judged, for our own trouble

    def list_files(self) -> None:
        """List every chunk file, by its name; readers check its bytes."""
        found = ((cid.digest, size, time.time()) for cid, size in self._files.sizes())
        while rows := list(islice(found, _BATCH)):

            def insert(db: sqlite3.Connection, rows: list[tuple[bytes, int, float]] = rows) -> None:
                db.executemany("INSERT OR IGNORE INTO chunks (cid, length, added) VALUES (?, ?, ?)", rows)

            self._index.write(insert)

    def finish_removals(self) -> None:
        """Unlist what was removed while the index on disk could not be written, and chunks that went with it."""
        removed_artifacts = self._envelopes.removed_artifacts()

        def unlist(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM artifacts WHERE id = ?", [(artifact,) for artifact in removed_artifacts])
            for row in db.execute("SELECT cid FROM chunks WHERE owners = 0").fetchall():
                if self._files.gone(Cid(bytes(row["cid"]))):
                    db.execute("DELETE FROM chunks WHERE cid = ?", (row["cid"],))

        self._index.write(unlist)
        self.forget_removals(removed_artifacts)

    def forget_removals(self, artifacts: Iterable[str]) -> None:
        """Forget the removal of artifacts that are in no index, unless the index on disk could not be written."""
        if not self._index.detached:
            for artifact in artifacts:
                self._envelopes.forget(artifact)

    def keep(self) -> None:
        """Write to disk what only the index has: envelopes and pins of older versions, or of a directory removed."""
        rows = {str(r["id"]): bool(r["pinned"]) for r in self._index.rows("SELECT id, pinned FROM artifacts")}
        kept = self._envelopes.all()
        missing = [artifact for artifact in rows if artifact not in kept]
        try:
            for artifact in missing:
                self._keep(artifact)
            for artifact, pinned in rows.items():
                if pinned != (artifact in kept and kept[artifact].pinned):
                    self._envelopes.pin(artifact, pinned)
            if missing:
                os.sync()  # of all at once: one for each would take minutes
                self._envelopes.sync()
        except OSError as error:
            self.pending = True
            self._problems.note(_PART, f"not every manifest could be written beside the index: {error}")
        else:
            self.pending = False
            self._problems.clear_one(_PART)

    def _keep(self, artifact: str) -> None:
        query = "SELECT e.envelope, added, used FROM artifacts JOIN envelopes e ON e.artifact = id WHERE id = ?"
        for row in self._index.rows(query, artifact):
            envelope, added, used = bytes(row["envelope"]), float(row["added"]), float(row["used"])
            self._envelopes.write(artifact, envelope, added=added, used=used, durable=False)

    def adopt(self, reader: Reader) -> int:
        """List the envelopes on disk that the index does not know, and return how many there were."""
        listed = {str(r["id"]) for r in self._index.rows("SELECT id FROM artifacts")}
        adopted, waiting, self.put_off = 0, "", False
        convert = as_kvswap_error if _MANIFESTS in self._problems else record  # the upkeep tries again: told once
        for kept in self._envelopes.all().values():
            if kept.id not in listed:
                try:
                    adopted += self._adopt(kept, reader)
                except FileNotFoundError:
                    continue  # removed meanwhile
                except Exception as error:  # noqa: BLE001 - the others are listed all the same
                    failure = convert(error, "listing a manifest")
                    self.put_off |= is_own(failure)
                    waiting = waiting or f"manifest {kept.id} is on disk and not listed: {failure.message}"
        if waiting:
            self._problems.note(_MANIFESTS, waiting)
        else:
            self._problems.clear_one(_MANIFESTS)
        return adopted

    def _adopt(self, kept: StoredEnvelope, reader: Reader) -> bool:
        """List an envelope, or set it aside for what is wrong in it.

        What is raised is no judgement of the envelope, which stays with its pin: our own trouble, a newer version.
        """
        try:
            listing = reader(self._envelopes.read(kept.id))
        except Untrusted:
            return False  # of a group whose key is not here: it stays, for when the key comes back
        except (IntegrityError, MalformedManifest, Misplaced) as error:
            if isinstance(error, KvswapError) and error.origin is not None:
                raise  # of a damaged database, of which the reader asks as well
            _log.warning("manifest %s is set aside: %s", kept.id, error)
            listing = None
            self._envelopes.set_aside(kept.id, self._files.quarantine)
        if listing is None or listing.row.id != kept.id:
            self._envelopes.remove(kept.id)  # withdrawn, or not what its name says
            return False
        row = msgspec.structs.replace(listing.row, added=kept.added, used=kept.used, pinned=kept.pinned)
        here = [(cid.digest, size, time.time()) for cid, size in self._here(listing)]

        def insert(db: sqlite3.Connection) -> None:
            db.executemany("INSERT OR IGNORE INTO chunks (cid, length, added) VALUES (?, ?, ?)", here)
            list_artifact(db, replace(listing, row=row))

        self._index.write(insert)
        return True

    def _here(self, listing: Listing) -> Iterator[tuple[Cid, int]]:
        for cid in dict.fromkeys([*listing.needed, *listing.others]):
            with contextlib.suppress(OSError):
                yield cid, self._files.path(cid).stat().st_size


def list_artifact(db: sqlite3.Connection, listing: Listing) -> bool:
    """Insert an artifact; True when all that it needs is listed.  Idempotent; keeps pins."""
    row = listing.row
    values = {**msgspec.structs.asdict(row), "complete": False, "envelope": b""}
    columns = f"{COLUMNS}, envelope"
    marks = ", ".join(f":{n}" for n in columns.split(", "))
    wanted = frozenset(listing.needed)
    db.execute(
        f"INSERT INTO artifacts ({columns}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET used = excluded.used",
        values,
    )
    db.execute("INSERT OR IGNORE INTO envelopes VALUES (?, ?)", (row.id, listing.envelope))
    db.executemany(
        "INSERT OR IGNORE INTO artifact_chunks VALUES (?, ?, ?)",
        [(row.id, c.digest, c in wanted) for c in dict.fromkeys([*listing.needed, *listing.others])],
    )
    db.executemany(
        "INSERT OR IGNORE INTO prefixes VALUES (?, ?, ?)",
        [(digest, row.id, block) for block, digest in enumerate(listing.chain)],
    )
    return recount(db, row.id)


def recount(db: sqlite3.Connection, artifact: str | None = None) -> bool:
    """Update whether what an artifact needs, or each of them, is listed; return it for one, False for all."""
    where, about = ("", ()) if artifact is None else (" WHERE id = ?", (artifact,))
    db.execute(
        "UPDATE artifacts SET complete = NOT EXISTS (SELECT 1 FROM artifact_chunks a "
        f"LEFT JOIN chunks c ON c.cid = a.cid WHERE a.artifact = artifacts.id AND a.needed AND c.cid IS NULL){where}",
        about,
    )
    if artifact is None:
        return False
    return bool(db.execute("SELECT complete FROM artifacts WHERE id = ?", about).fetchone()["complete"])
