"""The ledger of peers: bytes both ways, failures, invalid data, and which peers are blocked.

It is kept in memory, written behind to `peers.sqlite3`, and read again at the next start.  A damaged file
costs the history, nothing else: it is moved aside.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from kvswap.core.bounded import Table
from kvswap.core.errors import UsageError
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import Problems
from kvswap.store import database

_KEPT = 4_096
_BLOCKED = 3_072  # at most, so that there is room for others too
_INVALID_SENDERS = 1_024  # for whom others who are kept make room
_FAILURE_SECONDS = 2.0  # first pause after a failure; doubled with each more
_FAILURES_EXCUSED = 2  # failures in a row of who ever delivered: a flood makes good peers late as well


@dataclass(slots=True)
class PeerRecord:
    """The record of one peer.  Times are Unix seconds; bytes are chunk bytes."""

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
        """The bytes given for each byte taken; None before anything was taken."""
        return self.bytes_out / self.bytes_in if self.bytes_in else None

    def failed(self, now: float) -> None:
        """Count a failure at `now`."""
        self.failures += 1
        self.in_a_row += 1
        self.failed_at = now

    def count_invalid_data(self, now: float) -> None:
        """Count invalid data at `now`."""
        self.lies += 1
        self.lied_at = now

    def precede(self, before: PeerRecord) -> None:
        """Add the counts of an earlier record, read only after this one was begun."""
        for name in ("bytes_in", "bytes_out", "failures", "lies"):
            setattr(self, name, getattr(self, name) + getattr(before, name))
        for name in ("lied_at", "failed_at", "seen"):
            setattr(self, name, max(getattr(self, name), getattr(before, name)))
        self.blocked = self.blocked or before.blocked
        self.publisher = self.publisher or before.publisher

    @property
    def sends_invalid_data(self) -> bool:
        """True while invalid data from the peer still counts."""
        return self.lied_at > 0 and self.lied_at + LIMITS.invalid_data_seconds > time.time()

    @property
    def kept(self) -> bool:
        """True if no new peer takes the place of this one: it is blocked, sent invalid data, or ever delivered."""
        return self.blocked or self.bytes_in > 0 or self.sends_invalid_data

    def worked(self) -> None:
        """Note a success of the peer, which ends its failures in a row."""
        self.in_a_row = 0

    def not_before(self, longest: float, invalid_data_seconds: float, connected: float | None = None) -> float:
        """Return when this peer may be asked again, in Unix seconds (0: now).

        `longest`: the longest pause after failures, in seconds; `invalid_data_seconds`: the pause after invalid data.
        A connection made after a failure, at `connected`, ends the pause for that.
        """
        pause = min(longest, _FAILURE_SECONDS * 2.0 ** min(16, self.in_a_row - 1)) if self.in_a_row else 0.0
        over = connected is not None and connected > self.failed_at
        counted = self.in_a_row > (_FAILURES_EXCUSED if self.bytes_in else 0)
        after_failure = self.failed_at + pause if counted and not over else 0.0
        return max(after_failure, self.lied_at + invalid_data_seconds if self.lied_at else 0.0)


_NAMES = tuple(f.name for f in fields(PeerRecord))
_Values = tuple[object, ...]


class Ledger:
    """The records of peers by PeerId.  `record` and `flush` may be called from different threads."""

    def __init__(self, path: Path, problems: Problems | None = None) -> None:
        """Read the file.  One that is damaged is set aside and begun anew, which `problems` tells."""
        self._path = path
        self._problems = problems if problems is not None else Problems()
        self._lock = threading.RLock()  # of the table; held for no disk
        self._writing = threading.Lock()  # of the file
        self.table: Table[str, PeerRecord] = Table(
            "ledger",
            entries=_KEPT,
            size=lambda peer, record: 512,
            keep=lambda peer, record: record.kept,
        )
        self._written: dict[str, _Values] = {}  # as the file has them
        self._db: sqlite3.Connection | None = None
        self._unread = False  # the file has a history that could not be read yet
        self.rows_written = 0
        try:
            self._db = self._open()
            self._read(self._db)
        except (sqlite3.Error, OSError) as error:
            if database.is_damage(error) or database.is_of_another_schema(error):
                self._anew(error)
            else:  # our own trouble: a full or read-only disk, a file in use, no memory, no file handles
                self._read_only(error)

    def _open(self) -> sqlite3.Connection:
        db = database.connect(self._path)
        columns = ", ".join(f"{name} NOT NULL" for name in _NAMES)
        try:
            db.execute(f"CREATE TABLE IF NOT EXISTS peers (peer TEXT PRIMARY KEY, {columns}) WITHOUT ROWID")
        except BaseException:
            db.close()
            raise
        return db

    def _read(self, db: sqlite3.Connection) -> None:
        rows = db.execute(f"SELECT peer, {', '.join(_NAMES)} FROM peers ORDER BY seen").fetchall()
        with self._lock:
            for peer, *values in rows:
                record = PeerRecord(*values)
                record.blocked = bool(record.blocked)
                self._written[peer] = _values(record)
                if (since := self.table.peek(peer)) is not None:
                    since.precede(record)
                else:
                    self._add(peer, record)

    def _read_only(self, why: Exception) -> None:
        """Read the history from a copy; what comes is written when the disk takes it."""
        self._close()
        copy = database.copied(self._path)
        try:
            self._read(copy)
        except sqlite3.Error:
            self._unread = self._path.exists()
        finally:
            copy.close()
        self._written.clear()
        if self._unread:
            self._problems.note("peers", f"{self._path.name} cannot be read now: what is known of peers waits ({why})")

    def _catch_up(self) -> None:
        """Read what could not be read at the start; nothing is written over it before."""
        if self._db is None:
            self._db = self._open()
        self._read(self._db)
        self._unread = False
        self._problems.clear_one("peers")

    def _anew(self, why: Exception) -> None:
        self._close()
        self.table.clear()
        self._written.clear()
        with contextlib.suppress(sqlite3.Error, OSError):
            database.set_aside(self._path)
            self._db = self._open()
        self._problems.note("peers", f"{self._path.name} was damaged: what was known of peers is lost ({why})")

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def record(self, peer: str) -> PeerRecord:
        """Return the record of a peer, made when it is new; those seen longest ago are forgotten.

        Who is blocked, lied lately or ever delivered is kept.  When all are, one who delivered gives way to the first
        that is new, and that one to the next.  To set what makes a record one that is kept, use `changing`.
        """
        with self._lock:
            known = self.table.get(peer)
            if known is None:
                known = PeerRecord()
                self._add(peer, known)
            known.seen = time.time()
            return known

    @contextlib.contextmanager
    def changing(self, peer: str) -> Iterator[PeerRecord]:
        """Yield the record of a peer to be changed; no new peer pushes it out meanwhile."""
        with self._lock:
            yield self.record(peer)

    def block(self, peer: str, blocked: bool) -> None:
        """Block a peer, or unblock it and forget its failures and lies.

        Raises `UsageError` where as many are blocked as there is room for: none of them is ever forgotten.
        """
        with self._lock:
            if blocked and not self.blocked(peer) and sum(r.blocked for r in self.table.values()) >= _BLOCKED:
                raise UsageError(
                    f"{_BLOCKED} peers are blocked, and no more can be",
                    cause="each is remembered for good",
                    hint="kvswap unblock PEER",
                )
            with self.changing(peer) as record:
                record.blocked = blocked
                if not blocked:
                    record.in_a_row, record.lied_at = 0, 0.0

    def _add(self, peer: str, record: PeerRecord) -> None:
        if not record.kept and self.table.put(peer, record, peer):
            return
        if len(self.table) < self.table.most_entries or self._free_capacity():
            self.table.put(peer, record, peer)

    def _free_capacity(self) -> bool:
        """Drop a record that is not to be kept any more, else of a sender of invalid data where there are many."""
        since = time.time() - LIMITS.invalid_data_seconds
        spare: list[str] = []
        invalid_senders: list[str] = []
        others: list[str] = []
        for peer, record in self.table.items():  # as often as somebody new comes: one pass, and the time is asked once
            if record.blocked:
                continue
            if record.lied_at > since:
                invalid_senders.append(peer)
            elif record.bytes_in:
                others.append(peer)
            else:
                spare.append(peer)
                break
        given = spare or (invalid_senders if len(invalid_senders) > _INVALID_SENDERS or not others else others)
        if given:
            self.table.evict(given[0])
        return bool(given)  # not where an older kvswap let the user block as many as there are places

    def peers(self) -> dict[str, PeerRecord]:
        """Return all records, by PeerId."""
        with self._lock:
            return dict(self.table.items())

    def publisher(self, peer: str) -> str:
        """Return the publisher that a peer said it is; empty where it said nothing."""
        known = self.table.peek(peer)
        return known.publisher if known is not None else ""

    def blocked(self, peer: str) -> bool:
        """Return True if the user blocked this peer."""
        known = self.table.peek(peer)
        return known is not None and known.blocked

    def sends_invalid_data(self, peer: str) -> bool:
        """Return True if a lie of this peer still counts."""
        known = self.table.peek(peer)
        return known is not None and known.sends_invalid_data

    def delivered(self, peer: str) -> bool:
        """Return True if the peer ever gave what it was asked for."""
        known = self.table.peek(peer)
        return known is not None and known.bytes_in > 0

    def backoff_seconds(
        self, peer: str, longest: float, invalid_data_seconds: float, connected: float | None = None
    ) -> float:
        """Return the seconds for which this peer should not be asked.

        Failures from before it `connected` (Unix seconds) do not count; `longest` and `invalid_data_seconds` are the
        pauses, as in `PeerRecord.not_before`.
        """
        known = self.table.peek(peer)
        return max(0.0, known.not_before(longest, invalid_data_seconds, connected) - time.time()) if known else 0.0

    def flush(self) -> None:
        """Write what changed; blocks.  A full disk costs the history since the last flush."""
        with self._writing:
            if self._unread:
                try:
                    self._catch_up()
                except (sqlite3.Error, OSError) as error:
                    if not database.is_damage(error):
                        return  # and again with the next flush
                    self._unread = False
                    self._renew(error)
            now = {peer: _values(record) for peer, record in self.peers().items()}
            changed = [(peer, *values) for peer, values in now.items() if self._written.get(peer) != values]
            gone = [(peer,) for peer in self._written if peer not in now]
            if self._db is not None and not self._path.exists():
                self._close()  # somebody deleted it: all is written anew
                self._written.clear()
                changed = [(peer, *values) for peer, values in now.items()]
            if not changed and not gone:
                return
            try:
                self._write(changed, gone)
            except (sqlite3.Error, OSError) as error:
                if not database.is_damage(error):
                    return  # and again with the next flush
                self._renew(error)
                return
            self._written = now
            self.rows_written += len(changed)

    def _write(self, changed: Sequence[_Values], gone: Sequence[_Values]) -> None:
        if self._db is None:
            self._db = self._open()
        marks = ", ".join("?" * (len(_NAMES) + 1))
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if not self._written:  # it is not known what the file has
                self._db.execute("DELETE FROM peers")
            self._db.executemany("DELETE FROM peers WHERE peer = ?", gone)
            self._db.executemany(f"INSERT OR REPLACE INTO peers VALUES ({marks})", changed)
            self._db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            raise

    def _renew(self, why: Exception) -> None:
        """Set aside a file that was damaged while this ran: memory has it all, for the next flush."""
        self._close()
        self._written.clear()
        with contextlib.suppress(sqlite3.Error, OSError):
            database.set_aside(self._path)
        self._problems.note("peers", f"{self._path.name} was damaged and is written anew ({why})")

    def close(self) -> None:
        """Write what changed, and close the file."""
        self.flush()
        with self._writing:
            self._close()


def _values(record: PeerRecord) -> _Values:
    return tuple(getattr(record, name) for name in _NAMES)
