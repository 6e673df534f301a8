"""What this node found out of artifacts and publishers, or was told: own checks, audits, head records.

In `trust.sqlite3`.  Who may be believed is not decided here; what is kept is bounded, the oldest goes first.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kvswap.store.files import set_aside

_SCHEMA = """
CREATE TABLE IF NOT EXISTS checks (
    artifact TEXT NOT NULL, level INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (artifact, level)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS audits (
    id TEXT PRIMARY KEY, artifact TEXT NOT NULL, document TEXT, publisher TEXT NOT NULL, auditor TEXT NOT NULL,
    failed INTEGER NOT NULL, at REAL NOT NULL, envelope BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS audits_artifact ON audits (artifact);
CREATE INDEX IF NOT EXISTS audits_document ON audits (document);
CREATE TABLE IF NOT EXISTS heads (
    publisher TEXT PRIMARY KEY, sequence INTEGER NOT NULL, at REAL NOT NULL, kept INTEGER NOT NULL,
    envelope BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS withdrawn (
    artifact TEXT NOT NULL, publisher TEXT NOT NULL, why TEXT NOT NULL, PRIMARY KEY (artifact, publisher)
) WITHOUT ROWID;
"""
_AUDITS_KEPT = 20_000
_OF_ONE_ARTIFACT = 64
_CHECKS_KEPT = 100_000
_HEADS_KEPT = 256  # of publishers who are not trusted


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An audit as it was signed."""

    id: str
    artifact: str
    document: str | None
    publisher: str
    auditor: str
    failed: bool
    envelope: bytes


class Records:
    """May be used from several threads."""

    def __init__(self, path: Path) -> None:
        """A damaged file is moved aside: whom this node distrusts is in `trust.json`, the rest is heard again."""
        self._lock = threading.Lock()
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            set_aside(path)
            self._db = _open(path)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _rows(self, query: str, *arguments: object) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, arguments).fetchall()

    # -- own checks ------------------------------------------------------------------------------

    def add_checks(self, artifact: str, levels: list[int]) -> None:
        """These steps of the ladder passed here."""
        for level in levels:
            self._rows("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", artifact, level, time.time())
        self._trim("checks", _CHECKS_KEPT)

    def checks(self, artifact: str) -> set[int]:
        return {int(r["level"]) for r in self._rows("SELECT level FROM checks WHERE artifact = ?", artifact)}

    # -- audits ----------------------------------------------------------------------------------

    def add_audit(self, row: AuditRow) -> bool:
        """False when it was known, or when an artifact has as many as are kept of one."""
        (count,) = self._rows("SELECT COUNT(*) AS n FROM audits WHERE artifact = ?", row.artifact)
        if count["n"] >= _OF_ONE_ARTIFACT:
            return False
        values = (row.id, row.artifact, row.document, row.publisher, row.auditor, row.failed, time.time(), row.envelope)
        added = self._rows("INSERT OR IGNORE INTO audits VALUES (?, ?, ?, ?, ?, ?, ?, ?) RETURNING id", *values)
        self._trim("audits", _AUDITS_KEPT)
        return bool(added)

    def audits(self, **wanted: str | None) -> list[AuditRow]:
        """Of an `artifact`, of a `document`, about a `publisher`, or all; failures first, then the newest."""
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        columns = ", ".join(AuditRow.__slots__)
        query = f"SELECT {columns} FROM audits WHERE {where} ORDER BY failed DESC, at DESC"
        return [AuditRow(*(r[name] for name in AuditRow.__slots__)) for r in self._rows(query, *given.values())]

    # -- head records ----------------------------------------------------------------------------

    def head(self, publisher: str) -> tuple[int, bytes] | None:
        """(sequence, envelope) of the newest head of a publisher that was seen."""
        rows = self._rows("SELECT sequence, envelope FROM heads WHERE publisher = ?", publisher)
        return (int(rows[0]["sequence"]), bytes(rows[0]["envelope"])) if rows else None

    def put_head(
        self, publisher: str, sequence: int, envelope: bytes, withdrawn: dict[str, str], *, kept: bool
    ) -> None:
        """Replaces what was there; what was once withdrawn stays so.

        `kept`: of a publisher whom we trust, to be forgotten for no stranger's sake.
        """
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)",
                (publisher, sequence, time.time(), kept, envelope),
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO withdrawn VALUES (?, ?, ?)",
                [(artifact, publisher, why) for artifact, why in withdrawn.items()],
            )
            strangers = "SELECT publisher FROM heads WHERE kept = 0 ORDER BY at DESC LIMIT -1 OFFSET ?"
            gone = [(row["publisher"],) for row in self._db.execute(strangers, (_HEADS_KEPT,)).fetchall()]
            for table in ("heads", "withdrawn"):
                self._db.executemany(f"DELETE FROM {table} WHERE publisher = ?", gone)
            self._db.execute("COMMIT")

    def withdrawn(self, artifact: str, publisher: str) -> str | None:
        """Why its publisher withdrew an artifact; None when it did not."""
        rows = self._rows("SELECT why FROM withdrawn WHERE artifact = ? AND publisher = ?", artifact, publisher)
        return str(rows[0]["why"]) if rows else None

    def withdrawn_by(self, publisher: str) -> dict[str, str]:
        rows = self._rows("SELECT artifact, why FROM withdrawn WHERE publisher = ? ORDER BY artifact", publisher)
        return {r["artifact"]: r["why"] for r in rows}

    def _trim(self, table: str, kept: int) -> None:
        (count,) = self._rows(f"SELECT COUNT(*) AS n FROM {table}")
        if count["n"] > kept:
            (cut,) = self._rows(f"SELECT at FROM {table} ORDER BY at DESC LIMIT 1 OFFSET ?", kept)
            self._rows(f"DELETE FROM {table} WHERE at <= ?", cut["at"])


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    db.row_factory = sqlite3.Row
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        db.execute(f"PRAGMA {pragma}")
    db.executescript(_SCHEMA)
    return db
