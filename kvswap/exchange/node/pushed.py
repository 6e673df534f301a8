"""What this node put at which origin, so that it can be taken back."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from kvswap.core.origin_settings import OriginSettings, origin
from kvswap.store import database


class Pushed:
    """The record of pushes, in `pushed.sqlite3`.  Its methods block."""

    def __init__(self, home: Path) -> None:
        self._path = home / "pushed.sqlite3"
        self._lock = threading.Lock()

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._lock, closing(database.connect(self._path)) as db:
            db.execute("CREATE TABLE IF NOT EXISTS pushed (artifact TEXT, url TEXT, settings TEXT NOT NULL, "
                       "PRIMARY KEY (artifact, url)) WITHOUT ROWID")  # fmt: skip
            with db:
                yield db

    def add(self, artifact: str, to: OriginSettings) -> None:
        """Note that an artifact is at an origin, or about to be."""
        with self._opened() as db:
            row = (artifact, to.url, json.dumps(to.to_json()))
            db.execute("INSERT OR REPLACE INTO pushed VALUES (?, ?, ?)", row)

    def of(self, artifact: str) -> list[OriginSettings]:
        """Return the origins at which this node put an artifact."""
        if not self._path.exists():
            return []
        with self._opened() as db:
            rows = db.execute("SELECT settings FROM pushed WHERE artifact = ?", (artifact,)).fetchall()
        return [origin(json.loads(text)) for (text,) in rows]

    def remove(self, artifact: str, url: str) -> None:
        """Note that an artifact is not at an origin any more."""
        with self._opened() as db:
            db.execute("DELETE FROM pushed WHERE artifact = ? AND url = ?", (artifact, url))
