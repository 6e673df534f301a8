"""Asking the index about artifacts."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence

from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.store.index import Index
from kvswap.store.listing import COLUMNS, ArtifactRow, row_of

_BATCH = 500


class Artifacts:
    """What is listed.  Each method is one committed state, and blocks."""

    _index: Index

    def get_artifact(self, artifact: str) -> ArtifactRow | None:
        """Return what the index knows of an artifact; None when it is not listed."""
        rows = self._index.rows(f"SELECT {COLUMNS} FROM artifacts WHERE id = ?", artifact)
        return row_of(rows[0]) if rows else None

    def lookup(self, reference: str | Cid) -> list[ArtifactRow]:
        """Return what answers to a reference: the artifact of an id, or those of a document, newest first."""
        if isinstance(reference, Cid):
            row = self.get_artifact(str(reference))
            return [row] if row else []
        return self.artifacts(reference)

    def envelope(self, artifact: str) -> bytes | None:
        """Return the signed manifest of an artifact; None when it is not listed."""
        rows = self._index.rows("SELECT envelope FROM artifacts WHERE id = ?", artifact)
        return bytes(rows[0]["envelope"]) if rows else None

    def envelope_length(self, artifact: str) -> int:
        """Return how many bytes an envelope has, without reading it; 0 where there is none."""
        rows = self._index.rows("SELECT length(envelope) n FROM artifacts WHERE id = ?", artifact)
        return int(rows[0]["n"]) if rows else 0

    def artifacts(self, document: str | None = None, publisher: str | None = None) -> list[ArtifactRow]:
        """Return all, newest first; or those of one document, or of one publisher."""
        wanted = {"document": document, "publisher": publisher}
        given = {name: value for name, value in wanted.items() if value}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        query = f"SELECT {COLUMNS} FROM artifacts WHERE {where} ORDER BY added DESC"
        return [row_of(r) for r in self._index.rows(query, *given.values())]

    def count(self) -> int:
        """Return how many artifacts are listed."""
        return int(self._index.rows("SELECT COUNT(*) AS n FROM artifacts")[0]["n"])

    def newest(self, limit: int) -> list[ArtifactRow]:
        """Return the complete artifacts that came last, newest first."""
        query = f"SELECT {COLUMNS} FROM artifacts WHERE complete ORDER BY added DESC LIMIT ?"
        return [row_of(r) for r in self._index.rows(query, limit)]

    def ids_of(self, publisher: str, alive: float) -> list[str]:
        """Return the ids of a publisher's artifacts that have not expired at `alive` (Unix seconds), sorted."""
        query = "SELECT id FROM artifacts WHERE publisher = ? AND expires > ? ORDER BY id"
        return [str(r["id"]) for r in self._index.rows(query, publisher, alive)]

    def longest_prefix(self, chain: Sequence[bytes]) -> list[tuple[ArtifactRow, int]]:
        """Return complete artifacts that share a beginning with `chain`, as (artifact, shared blocks), longest first.

        Chain digests include everything before them, so the last one that matches decides.
        """
        best: dict[str, int] = {}
        for start in range(0, len(chain), _BATCH):
            piece = list(chain[start : start + _BATCH])
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
