"""The records of trust: own checks and outcomes, audits, and publisher status records, in `trust.sqlite3`.

Who may be believed is not decided here; what is kept is bounded.  What untrusted peers tell gives way
first, and of that what one sender told most of; a withdrawal of something that was held or asked for never does.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from kvswap.core.bounded import Table
from kvswap.core.upkeep import Problems
from kvswap.store import database, quotas
from kvswap.store.index import Index
from kvswap.store.outcome import WITHHELD, Outcome, Verdict, outcome_of
from kvswap.store.tables import ROWS_AT_ONCE
from kvswap.store.trust_tables import MIGRATIONS
from kvswap.store.unwritten import AuditRow, ReceivedStatusRecord, Unwritten

_AUDITS_KEPT = 20_000
_CHECKS_KEPT = 100_000
_OUTCOMES_KEPT = 100_000
_ASKED_KEPT = 100_000
_WITHDRAWN_KEPT = 100_000  # whose status records are gone: of what was asked for, and as many of what was here
_MANY = 100  # artifacts asked about at once, or rows of a table
_ASKED, _HELD = 1, 2  # why a withdrawal is kept
_STATUS_RECORDS_KEPT = 1_024
_STATUS_RECORDS_OF_A_SENDER = 32
_STATUS_RECORDS_BYTES = 64 << 20
_WITHDRAWN_BYTES = 512  # a row of `withdrawn`, about


def nobody(publisher: str) -> bool:
    """Return False: the rule of a node that trusts no publisher, so that no status record is kept for good."""
    return False


class Records:
    """The findings of this node and the statements of others.  May be used from several threads."""

    def __init__(self, path: Path, keeps: Callable[[str], bool] = nobody, problems: Problems | None = None) -> None:
        """Open or create the file.

        `keeps(publisher)` is asked when space is needed: whose status records give way to no untrusted publisher's.  A
        damaged file is moved aside, which `problems` tells: whom this node banned is in `trust.json`, the rest is heard
        again.
        """
        self._lock = threading.RLock()
        self._problems = problems if problems is not None else Problems()
        self._keeps = keeps
        self._db = Index(path, MIGRATIONS, on_problem=self._note_problem)
        self.generation = 0  # grows when something that was said of an artifact changes
        self._asked: set[str] = set()  # those noted since the start
        self.unwritten = Unwritten(keeps)  # what was told and the disk did not take
        self._withheld = self._read_withheld()
        self._failed = self._read_failed()
        self._gone: list[str] = []
        self.status_records: Table[str, int] = Table(
            "heads",
            entries=_STATUS_RECORDS_KEPT,
            nbytes=_STATUS_RECORDS_BYTES,
            per_sender=_STATUS_RECORDS_OF_A_SENDER,
            keep=lambda publisher, _: keeps(publisher),
            size=lambda _, size: size,
            removed=lambda publisher, _: self._gone.append(publisher),
        )
        query = (
            "SELECT publisher, teller, kept, LENGTH(envelope) AS size, "
            "(SELECT COUNT(*) FROM withdrawn w WHERE w.publisher = h.publisher AND NOT w.kept) AS lines "
            "FROM heads h ORDER BY at"
        )
        for row in self._rows(query):
            size = int(row["size"]) + int(row["lines"]) * _WITHDRAWN_BYTES
            self.status_records.put(row["publisher"], size, row["teller"], held=bool(row["kept"]) and not row["teller"])
        with database.best_effort(), self._writing() as db:
            self._forget_status_records(db)
            self._gone.clear()

    def _note_problem(self, text: str | None) -> None:
        if text is None:
            self._problems.clear_one("trust")
        else:
            self._problems.note("trust", text)

    @property
    def empty(self) -> bool:
        """True if the file was begun anew when it was opened."""
        return self._db.empty

    @property
    def on_loop(self) -> int:
        """The number of accesses to the file by a thread that runs an event loop, which they hold up."""
        return self._db.on_loop

    def maintain(self) -> None:
        """Write to the disk again as soon as it can be: call it now and then, in a thread."""
        self._db.maintain()
        for publisher, status_record in self.unwritten.all_status_records():
            try:
                self.put_status_record(publisher, status_record)
            except Exception as error:
                if not database.cannot_write(error):
                    raise
                return  # and again with the next look

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _rows(self, query: str, *arguments: object) -> list[sqlite3.Row]:
        return self._db.rows(query, *arguments)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Begin a transaction, rolled back on any exception, and one at a time."""
        with self._lock, self._db.transaction() as db:
            yield db

    # -- own checks ------------------------------------------------------------------------------

    def add_checks(self, artifact: str, levels: list[int]) -> None:
        """Record that these verification levels passed here.

        Where that cannot be written, they are done again one day.
        """
        now = time.time()
        with database.best_effort(), self._writing() as db:
            db.executemany("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", [(artifact, n, now) for n in levels])
            quotas.trim(db, "checks", _CHECKS_KEPT)

    def checks(self, artifact: str) -> set[int]:
        """Return the verification levels that an artifact passed here."""
        return {int(r["level"]) for r in self._rows("SELECT level FROM checks WHERE artifact = ?", artifact)}

    # -- outcomes --------------------------------------------------------------------------------

    def put_outcome(self, outcome: Outcome) -> None:
        """Keep the outcome of a whole verification; what was kept of the artifact before is replaced.

        Where it cannot be written it holds until the end of the process.
        """
        if outcome.verdict not in get_args(Verdict):
            raise ValueError(f"no outcome: {outcome.verdict}")
        levels = " ".join(str(level) for level in sorted(outcome.levels))
        others = " ".join(outcome.others)
        values = (outcome.artifact, outcome.publisher, outcome.verdict, outcome.rules, levels, others, outcome.why)
        with database.best_effort(), self._writing() as db:
            db.execute("INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, time.time()))
            marks = ", ".join("?" * len(WITHHELD))  # what must not be used is not pushed out by what may
            for where in (f"verdict NOT IN ({marks})", f"verdict IN ({marks})"):
                quotas.trim(db, "outcomes", _OUTCOMES_KEPT, where, WITHHELD)
        with self._lock:
            if outcome.verdict in WITHHELD:
                self._withheld[outcome.artifact] = outcome
            else:
                self._withheld.pop(outcome.artifact, None)
            self.generation += 1

    def outcome(self, artifact: str) -> Outcome | None:
        """Return the outcome of the last whole verification of an artifact; None where there was none."""
        return self.outcomes([artifact]).get(artifact)

    def outcomes(self, artifacts: Sequence[str]) -> dict[str, Outcome]:
        """Return the outcomes of the last whole verifications, by artifact."""
        found = {row["artifact"]: outcome_of(row) for row in self._of("outcomes", artifacts)}
        with self._lock:
            return found | {name: self._withheld[name] for name in artifacts if name in self._withheld}

    def _of(self, table: str, artifacts: Sequence[str], more: str = "1") -> Iterator[sqlite3.Row]:
        """Iterate over the rows of these artifacts for which `more` holds too."""
        if len(artifacts) >= _MANY:  # of a table with few rows all are read faster than so many are looked for
            found = self._rows(f"SELECT * FROM {table} WHERE {more} LIMIT ?", _MANY)
            if len(found) < _MANY:
                wanted = frozenset(artifacts)
                yield from (row for row in found if row["artifact"] in wanted)
                return
        for start in range(0, len(artifacts), ROWS_AT_ONCE):
            piece = artifacts[start : start + ROWS_AT_ONCE]
            where = f"artifact IN ({', '.join('?' * len(piece))}) AND {more}"
            yield from self._rows(f"SELECT * FROM {table} WHERE {where}", *piece)

    def forget_outcome(self, artifact: str) -> None:
        """Forget the outcome of an artifact, so that it is judged anew when it is next requested."""
        with self._writing() as db:
            db.execute("DELETE FROM outcomes WHERE artifact = ?", (artifact,))
        with self._lock:
            self._withheld.pop(artifact, None)
            self.generation += 1

    def withheld(self) -> list[str]:
        """List the artifacts that are disputed or wrong, or failed an audit, without reading the disk."""
        with self._lock:
            return list(dict.fromkeys([*self._withheld, *self._failed]))

    def _read_withheld(self) -> dict[str, Outcome]:
        marks = ", ".join("?" * len(WITHHELD))
        rows = self._rows(f"SELECT * FROM outcomes WHERE verdict IN ({marks})", *WITHHELD)
        return {row["artifact"]: outcome_of(row) for row in rows}

    # -- audits ----------------------------------------------------------------------------------

    def add_audit(self, row: AuditRow) -> bool:
        """Keep an audit; False when it was known, or passed and its artifact has as many as are kept of one.

        A failure always has room: the oldest that passed gives way to it, or the oldest at all.
        """
        values = (row.id, row.artifact, row.document, row.publisher, row.auditor, row.failed, time.time(), row.envelope)
        with self._writing() as db:
            known = db.execute("SELECT 1 FROM audits WHERE id = ?", (row.id,)).fetchone()
            if known or not quotas.free_capacity_for_audit(db, row.artifact, row.failed):
                return False
            db.execute("INSERT INTO audits VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            quotas.trim_audits(db, _AUDITS_KEPT)
        self.unwritten.drop_audit(row.id)
        self._count_audit(row)
        return True

    def takes_audit(self, row: AuditRow) -> bool:
        """Return True if `add_audit` would keep this one: it is not written yet, and there is room for it."""
        (counted,) = self._rows("SELECT COUNT(*), SUM(id = ?) FROM audits WHERE artifact = ?", row.id, row.artifact)
        return not counted[1] and (row.failed or counted[0] < quotas.AUDITS_OF_ONE_ARTIFACT)

    def remember_audit(self, row: AuditRow) -> None:
        """Keep an audit in memory that cannot be written: it counts, and has to be received again to be kept."""
        self.unwritten.put_audit(row)
        self._count_audit(row)

    def _count_audit(self, row: AuditRow) -> None:
        with self._lock:
            if row.failed:
                self._failed.add(row.artifact)
                if len(self._failed) > 2 * _AUDITS_KEPT:  # most of them have given way
                    self._failed = self._read_failed()
            self.generation += 1

    def _read_failed(self) -> set[str]:
        waiting = {row.artifact for row in self.unwritten.all_audits() if row.failed}
        return waiting.union(row["artifact"] for row in self._rows("SELECT artifact FROM audits WHERE failed"))

    def failures(self, artifacts: Sequence[str]) -> list[AuditRow]:
        """Return the audits that these artifacts failed, whoever signed them; the newest first."""
        with self._lock:
            names = [name for name in artifacts if name in self._failed]  # hardly ever one
        kept = [_audit(row) for row in self._of("audits", names, "failed ORDER BY at DESC")]
        return [row for row in self.unwritten.all_audits() if row.failed and row.artifact in names] + kept

    def audits(self, **wanted: str | None) -> list[AuditRow]:
        """Return the audits of an `artifact`, a `document`, about a `publisher`, or all.

        Failures first, then the newest.
        """
        given = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in given) or "1"
        query = f"SELECT * FROM audits WHERE {where} ORDER BY failed DESC, at DESC"
        kept = [_audit(row) for row in self._rows(query, *given.values())]
        waiting = self.unwritten.all_audits()
        more = [row for row in waiting if all(getattr(row, name) == value for name, value in given.items())]
        return sorted([*more, *kept], key=lambda row: not row.failed) if more else kept

    # -- status records ----------------------------------------------------------------------------

    def status_record(self, publisher: str) -> tuple[int, bytes] | None:
        """Return (sequence, envelope) of the newest status record of a publisher that was seen; None without one."""
        if (received := self.unwritten.status_record(publisher)) is not None:
            return received.sequence, received.envelope
        rows = self._rows("SELECT sequence, envelope FROM heads WHERE publisher = ?", publisher)
        return (int(rows[0]["sequence"]), bytes(rows[0]["envelope"])) if rows else None

    def put_status_record(self, publisher: str, received: ReceivedStatusRecord) -> None:
        """Replace the status record of a publisher; what was once withdrawn stays so.

        Of the withdrawals that the new record does not repeat, only the last ones stay, up to a bound by publisher.
        Those of artifacts that are here are remembered whatever happens to the record, as are those of what was
        `asked` for.  Raises where it cannot be written.
        """
        now = time.time()
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO heads (publisher, sequence, at, kept, envelope, teller) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (publisher, received.sequence, now, received.kept, received.envelope, received.sender),
            )
            db.executemany(
                "INSERT INTO withdrawn (artifact, publisher, why, kept, at) VALUES (?, ?, ?, "
                f"MAX(?, {_ASKED} * EXISTS (SELECT 1 FROM asked WHERE artifact = ?)), ?) "
                "ON CONFLICT DO UPDATE SET why = excluded.why, kept = MAX(kept, excluded.kept), at = excluded.at",
                [
                    (name, publisher, why, _HELD * (name in received.held), name, now)
                    for name, why in received.withdrawn.items()
                ],
            )
            lines = quotas.trim_lines(db, publisher, received.withdrawn, self._most_lines(publisher, received.kept))
            size = len(received.envelope) + lines * _WITHDRAWN_BYTES
            self._gone = [name for name in self._gone if name != publisher]  # of a transaction that did not end well
            if not self.status_records.put(publisher, size, received.sender, held=received.kept):
                self._gone.append(publisher)
            self._forget_status_records(db)
        with self._lock:
            self._gone.clear()
            self.unwritten.written(publisher)
            self.generation += 1

    def receive_status_record(self, publisher: str, received: ReceivedStatusRecord) -> None:
        """Keep a status record that a peer sent as `put_status_record` does, in memory where it cannot be written.

        `maintain` writes it as soon as that is possible.
        """
        with self._lock:
            waiting = self.unwritten.status_record(publisher)
            if waiting is not None:
                held = frozenset(waiting.held).union(received.held)
                most = self._most_lines(publisher)
                received = replace(
                    received,
                    withdrawn=quotas.joined_lines(waiting.withdrawn, received.withdrawn, held, most),
                    held=held,
                )
            try:
                self.put_status_record(publisher, received)
            except Exception as error:
                if not database.cannot_write(error):
                    raise
                asked = self._asked.intersection(received.withdrawn)
                self.unwritten.put_status_record(publisher, replace(received, held=asked.union(received.held)))
                self.generation += 1
                self._problems.note("heard", error)

    def _most_lines(self, publisher: str, kept: bool = False) -> int:
        return quotas.LINES_OF_TRUSTED if kept or self._keeps(publisher) else quotas.LINES_OF_UNTRUSTED

    def _forget_status_records(self, db: sqlite3.Connection) -> None:
        """Drop what gave way, and the withdrawals that came with it and concern nothing that was ever here.

        Those of trusted publishers stay.  What the user asked for and what was here have a quota each, as only that
        fills it.
        """
        db.create_function("trusted", 1, lambda publisher: int(self._keeps(publisher)))
        gone = [(publisher,) for publisher in self._gone]
        db.executemany("DELETE FROM heads WHERE publisher = ?", gone)
        db.executemany("DELETE FROM withdrawn WHERE publisher = ? AND NOT kept AND NOT trusted(publisher)", gone)
        headless = "NOT EXISTS (SELECT 1 FROM heads h WHERE h.publisher = withdrawn.publisher)"
        for why in (_ASKED, _HELD) if gone else ():
            (count,) = db.execute("SELECT COUNT(*) FROM withdrawn WHERE kept = ?", (why,)).fetchone()
            if count > _WITHDRAWN_KEPT:  # only then it is worth asking whom the user trusts
                quotas.trim(db, "withdrawn", _WITHDRAWN_KEPT, f"kept = {why} AND {headless} AND NOT trusted(publisher)")

    def ask(self, artifact: str) -> None:
        """Note that the user named an artifact by its id, or uses it, so that its withdrawal is kept.

        It does not matter which of both comes first.  Do not call it for what others offer: the last `_ASKED_KEPT` are
        noted, and who could fill that would push out the user's.
        """
        if artifact in self._asked:
            return
        with database.best_effort(), self._writing() as db:
            db.execute("INSERT OR REPLACE INTO asked VALUES (?, ?)", (artifact, time.time()))
            db.execute(f"UPDATE withdrawn SET kept = MAX(kept, {_ASKED}) WHERE artifact = ?", (artifact,))
            quotas.trim(db, "asked", _ASKED_KEPT)
        with self._lock:
            if len(self._asked) >= _ASKED_KEPT:
                self._asked.clear()
            self._asked.add(artifact)

    def withdrawn(self, artifact: str, publisher: str) -> str | None:
        """Return the reason for which its publisher withdrew an artifact; None when it did not."""
        received = self.unwritten.status_record(publisher)
        if received is not None and artifact in received.withdrawn:
            return received.withdrawn[artifact]
        rows = self._rows("SELECT why FROM withdrawn WHERE artifact = ? AND publisher = ?", artifact, publisher)
        return str(rows[0]["why"]) if rows else None

    def withdrawn_of(self, artifacts: Sequence[str]) -> dict[tuple[str, str], str]:
        """Return why artifacts were withdrawn, by (artifact, publisher): only its own publisher's word counts."""
        rows = self._of("withdrawn", artifacts)
        return {(r["artifact"], r["publisher"]): str(r["why"]) for r in rows} | self.unwritten.withdrawn_of(artifacts)

    def withdrawn_by(self, publisher: str) -> dict[str, str]:
        """Return the artifacts that a publisher has withdrawn, with the reasons."""
        rows = self._rows("SELECT artifact, why FROM withdrawn WHERE publisher = ? ORDER BY artifact", publisher)
        received = self.unwritten.status_record(publisher)
        return {r["artifact"]: r["why"] for r in rows} | (received.withdrawn if received is not None else {})


def _audit(row: sqlite3.Row) -> AuditRow:
    return AuditRow(*(row[name] for name in AuditRow.__slots__))
