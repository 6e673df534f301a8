"""The SQLite index: migrations, one connection that writes and one that reads, each behind its lock.

With the write-ahead log a reader sees the last committed state and waits for no writer.

Rows are written after the files they speak of, and deleted before them, so a crash leaves at worst a
file that nobody lists.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kvswap.core.errors import Incompatible

# Append only: a migration that was ever released is never edited.
MIGRATIONS = (
    """
    CREATE TABLE chunks (
        cid BLOB PRIMARY KEY, length INTEGER NOT NULL, added REAL NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE artifacts (
        id TEXT PRIMARY KEY, envelope BLOB NOT NULL, document TEXT, model BLOB NOT NULL,
        label TEXT NOT NULL, dtype TEXT NOT NULL, tokens INTEGER NOT NULL, raw_bytes INTEGER NOT NULL,
        wire_bytes INTEGER NOT NULL, publisher TEXT NOT NULL, expires INTEGER NOT NULL,
        added REAL NOT NULL, used REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0,
        complete INTEGER NOT NULL DEFAULT 0
    ) WITHOUT ROWID;
    CREATE INDEX artifacts_document ON artifacts (document);
    CREATE TABLE artifact_chunks (
        artifact TEXT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE, cid BLOB NOT NULL,
        needed INTEGER NOT NULL, PRIMARY KEY (artifact, cid)
    ) WITHOUT ROWID;
    CREATE INDEX artifact_chunks_cid ON artifact_chunks (cid);
    CREATE TABLE prefixes (
        chain BLOB NOT NULL, artifact TEXT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE,
        block INTEGER NOT NULL, PRIMARY KEY (chain, artifact)
    ) WITHOUT ROWID;
    """,
    """
    CREATE INDEX prefixes_artifact ON prefixes (artifact);
    """,
    """
    CREATE INDEX artifacts_publisher ON artifacts (publisher);
    """,
    """
    ALTER TABLE chunks ADD COLUMN synced INTEGER NOT NULL DEFAULT 1;
    CREATE INDEX chunks_unsynced ON chunks (cid) WHERE NOT synced;
    """,
)


class Index:
    """Serialised access to the database.  Safe to use from several threads."""

    def __init__(self, path: Path, migrations: Sequence[str] = MIGRATIONS, synchronous: str = "NORMAL") -> None:
        """`synchronous`: SQLite's; with FULL what is committed survives the loss of power."""
        self._lock = threading.RLock()
        self._db = _connect(path, synchronous)
        self._migrate(path, migrations)
        self._reading = threading.Lock()
        self._reader = _connect(path, synchronous)

    def _migrate(self, path: Path, migrations: Sequence[str]) -> None:
        with self.transaction() as db:  # another process may be opening it too
            (version,) = db.execute("PRAGMA user_version").fetchone()
            if version > len(migrations):
                raise Incompatible(
                    f"{path} has schema {version}, this kvswap knows {len(migrations)}",
                    cause="a newer kvswap wrote it",
                    field="store",
                )
            for number, script in enumerate(migrations[version:], start=version + 1):
                for statement in script.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version={number}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One writer at a time; rolled back on any exception."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, query: str, *arguments: object) -> list[sqlite3.Row]:
        """What is committed.  Inside a `transaction`, read through its own connection instead."""
        with self._reading:
            return self._reader.execute(query, arguments).fetchall()

    def close(self) -> None:
        with self._lock, self._reading:
            self._reader.close()
            self._db.close()


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    db.row_factory = sqlite3.Row
    for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON", "busy_timeout=10000"):
        db.execute(f"PRAGMA {pragma}")
    return db
