"""What this node experienced with each peer: bytes both ways, failures, lies, and whom it blocks.

Kept in memory, written behind to `peers.sqlite3`, and read again at the next start.  A damaged file
costs the history, nothing else: it is moved aside.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from dataclasses import dataclass, fields
from pathlib import Path

from kvswap.core.bounded import Table
from kvswap.store.files import set_aside

_KEPT = 4_096
_FAILURE_SECONDS = 2.0  # first pause after a failure; doubled with each more


@dataclass(slots=True)
class PeerRecord:
    """One peer.  Times are Unix seconds; bytes are chunk bytes."""

    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    lies: int = 0  # chunks that were not what was asked for
    lied_at: float = 0.0
    seen: float = 0.0
    blocked: bool = False
    publisher: str = ""
    in_a_row: int = 0  # failures since the last success
    failed_at: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Bytes given for each byte taken; None before anything was taken."""
        return self.bytes_out / self.bytes_in if self.bytes_in else None

    def failed(self, now: float) -> None:
        self.failures += 1
        self.in_a_row += 1
        self.failed_at = now

    def lied(self, now: float) -> None:
        self.lies += 1
        self.lied_at = now

    def worked(self) -> None:
        self.in_a_row = 0

    def not_before(self, longest: float, lie_seconds: float, connected: float | None = None) -> float:
        """When this peer may be asked again (0: now).  A connection made after a failure ends the pause for that."""
        pause = min(longest, _FAILURE_SECONDS * 2.0 ** min(16, self.in_a_row - 1)) if self.in_a_row else 0.0
        over = connected is not None and connected > self.failed_at
        after_failure = self.failed_at + pause if self.in_a_row and not over else 0.0
        return max(after_failure, self.lied_at + lie_seconds if self.lied_at else 0.0)


_NAMES = tuple(f.name for f in fields(PeerRecord))


class Ledger:
    """Records by PeerId.  `record` and `flush` may be called from different threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.table: Table[str, PeerRecord] = Table(
            "ledger",
            entries=_KEPT,
            size=lambda peer, record: 512,
            keep=lambda peer, record: record.blocked or record.bytes_in > 0,
        )
        try:
            self._db = self._open()
            self._read()
        except sqlite3.DatabaseError:
            set_aside(path)
            self.table.clear()
            self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=10)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        columns = ", ".join(f"{name} NOT NULL" for name in _NAMES)
        db.execute(f"CREATE TABLE IF NOT EXISTS peers (peer TEXT PRIMARY KEY, {columns}) WITHOUT ROWID")
        return db

    def _read(self) -> None:
        for peer, *values in self._db.execute(f"SELECT peer, {', '.join(_NAMES)} FROM peers ORDER BY seen"):
            record = PeerRecord(*values)
            record.blocked = bool(record.blocked)
            self.table.put(peer, record, peer)

    def record(self, peer: str) -> PeerRecord:
        """Return the record of a peer, made when it is new; those seen longest ago are forgotten.

        Who is blocked, or ever delivered, is kept: when all are, a new one is not.
        """
        with self._lock:
            known = self.table.get(peer)
            if known is None:
                known = PeerRecord()
                self.table.put(peer, known, peer)
            known.seen = time.time()
            return known

    def peers(self) -> dict[str, PeerRecord]:
        with self._lock:
            return dict(self.table.items())

    def blocked(self, peer: str) -> bool:
        known = self.table.peek(peer)
        return known is not None and known.blocked

    def delivered(self, peer: str) -> bool:
        """Whether it ever gave what it was asked for."""
        known = self.table.peek(peer)
        return known is not None and known.bytes_in > 0

    def resting(self, peer: str, longest: float, lie_seconds: float, connected: float | None = None) -> float:
        """Seconds for which this peer is better not asked; failures from before it `connected` (Unix) do not count."""
        known = self.table.peek(peer)
        return max(0.0, known.not_before(longest, lie_seconds, connected) - time.time()) if known else 0.0

    def flush(self) -> None:
        """Write everything; blocks.  A full disk costs the history since the last flush."""
        with self._lock:
            rows = [(peer, *(getattr(r, name) for name in _NAMES)) for peer, r in self.table.items()]
            marks = ", ".join("?" * (len(_NAMES) + 1))
            with contextlib.suppress(sqlite3.OperationalError):
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._db.execute("DELETE FROM peers")
                    self._db.executemany(f"INSERT INTO peers VALUES ({marks})", rows)
                    self._db.execute("COMMIT")
                except sqlite3.OperationalError:
                    self._db.execute("ROLLBACK")
                    raise

    def close(self) -> None:
        self.flush()
        self._db.close()
