"""Queries of the index for artifacts."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Iterator, Sequence

from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.store.index import Index
from kvswap.store.listing import COLUMNS, ArtifactRow, row_of
from kvswap.store.tables import ROWS_AT_ONCE

_SORTED = 32_768  # rows that are sorted in memory, about 20 MB of them


class Artifacts:
    """The artifacts that the index lists.  Each method sees one committed state, and blocks."""

    _index: Index

    @property
    def on_loop(self) -> int:
        """The number of accesses to the index by a thread that runs an event loop, which they hold up."""
        return self._index.on_loop

    def get_artifact(self, artifact: str) -> ArtifactRow | None:
        """Return the row of an artifact; None when it is not listed."""
        rows = self._index.rows(f"SELECT {COLUMNS} FROM artifacts WHERE id = ?", artifact)
        return row_of(rows[0]) if rows else None

    def lookup(self, reference: str | Cid) -> list[ArtifactRow]:
        """Return the rows that a reference names: the artifact of a CID, or those of a document, newest first."""
        if isinstance(reference, Cid):
            row = self.get_artifact(str(reference))
            return [row] if row else []
        return self.artifacts(reference)

    def envelope(self, artifact: str) -> bytes | None:
        """Return the signed manifest of an artifact; None when it is not listed."""
        rows = self._index.rows("SELECT envelope FROM envelopes WHERE artifact = ?", artifact)
        return bytes(rows[0]["envelope"]) if rows else None

    def envelope_length(self, artifact: str) -> int:
        """Return the length of an envelope in bytes, without reading it; 0 where there is none."""
        rows = self._index.rows("SELECT length(envelope) n FROM envelopes WHERE artifact = ?", artifact)
        return int(rows[0]["n"]) if rows else 0

    def artifacts(self, document: str | None = None) -> list[ArtifactRow]:
        """Return all artifacts, newest first, or those of one document.  Where there are many, use `pages` instead."""
        where, given = ("document = ?", [document]) if document else ("1", [])
        query = f"SELECT {COLUMNS} FROM artifacts WHERE {where} ORDER BY added DESC, id DESC"
        return [row_of(r) for r in self._index.rows(query, *given)]

    def page(self, after: ArtifactRow | None, limit: int) -> list[ArtifactRow]:
        """Return up to `limit` artifacts that come after this one, newest first; from the newest on without one."""
        where, given = ("(added, id) < (?, ?)", [after.added, after.id]) if after is not None else ("1", [])
        query = f"SELECT {COLUMNS} FROM artifacts WHERE {where} ORDER BY added DESC, id DESC LIMIT ?"
        return [row_of(r) for r in self._index.rows(query, *given, limit)]

    def pages(self, limit: int) -> Iterator[list[ArtifactRow]]:
        """Yield all artifacts, newest first, up to `limit` at a time.

        Up to `_SORTED` of them are read in the order of the table and sorted here: in half of the time that SQLite
        takes to find each by its date.  Of more there is never more than a page in memory.
        """
        if self.count() <= _SORTED:
            rows = [row_of(r) for r in self._index.rows(f"SELECT {COLUMNS} FROM artifacts")]
            rows.sort(key=lambda row: (row.added, row.id), reverse=True)
            yield from (rows[start : start + limit] for start in range(0, len(rows), limit))
            return
        page = self.page(None, limit)
        while page:
            yield page
            page = self.page(page[-1], limit) if len(page) == limit else []

    def count(self) -> int:
        """Return the number of artifacts that are listed."""
        return int(self._index.rows("SELECT COUNT(*) AS n FROM artifacts")[0]["n"])

    def ids_of(self, publisher: str, alive: float = -math.inf) -> list[str]:
        """Return the ids of a publisher's artifacts that have not expired at `alive` (Unix seconds); by default all."""
        query = "SELECT id FROM artifacts WHERE publisher = ? AND expires > ?"
        return [str(r["id"]) for r in self._index.rows(query, publisher, alive)]

    def mentioning(self, publisher: str, text: bytes, sealed: str) -> list[ArtifactRow]:
        """Return a publisher's artifacts whose signed manifest contains `text`, and those of the dtype `sealed`."""
        query = (
            f"SELECT {COLUMNS} FROM artifacts WHERE publisher = ? AND (dtype = ? OR EXISTS "
            "(SELECT 1 FROM envelopes e WHERE e.artifact = artifacts.id AND instr(e.envelope, ?) > 0))"
        )
        return [row_of(r) for r in self._index.rows(query, publisher, sealed, text)]

    def longest_prefix(self, chain: Sequence[bytes]) -> list[tuple[ArtifactRow, int]]:
        """Return complete artifacts that share a prefix with `chain`, as (artifact, shared blocks), longest first.

        Chain digests include everything before them, so the last one that matches decides.
        """
        best: dict[str, int] = {}
        for start in range(0, len(chain), ROWS_AT_ONCE):
            piece = list(chain[start : start + ROWS_AT_ONCE])
            marks = ",".join("?" * len(piece))
            query = f"SELECT artifact, block FROM prefixes WHERE chain IN ({marks})"
            for r in self._index.rows(query, *piece):
                best[r["artifact"]] = max(best.get(r["artifact"], 0), int(r["block"]) + 1)
        found = [(row, blocks) for name, blocks in best.items() if (row := self.get_artifact(name)) and row.complete]
        return sorted(found, key=lambda pair: -pair[1])

    def artifacts_with(self, cid: Cid) -> list[ArtifactRow]:
        """Return the artifacts that a chunk belongs to."""
        query = f"SELECT {COLUMNS} FROM artifacts WHERE id IN (SELECT artifact FROM artifact_chunks WHERE cid = ?)"
        return [row_of(r) for r in self._index.rows(query, cid.digest)]

    def chain_digests(
        self, limit: int, without: Collection[str] = (), publishers: Collection[str] = ()
    ) -> tuple[list[bytes], float]:
        """Return chain digests of complete, unexpired artifacts, and when the first of these expires (Unix seconds).

        The newest artifacts come first, `limit` digests at most.  Left out are the artifacts `without`, all of the
        `publishers`, and what was added later than now.
        """
        now = time.time()
        query = (
            "SELECT a.expires, p.chain FROM artifacts a JOIN prefixes p ON p.artifact = a.id "
            "WHERE a.complete AND a.expires > ? AND a.added <= ? "
            "AND a.id NOT IN (SELECT value FROM json_each(?)) AND a.publisher NOT IN (SELECT value FROM json_each(?)) "
            "ORDER BY a.added DESC LIMIT ?"  # what is left out takes no room
        )
        given = (now, now + LIMITS.clock_skew_seconds, json.dumps(list(without)), json.dumps(list(publishers)), limit)
        digests, until = [], math.inf
        for row in self._index.rows(query, *given):
            digests.append(bytes(row["chain"]))
            until = min(until, row["expires"])
        return digests, until
