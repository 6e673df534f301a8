"""Statements of peers that the disk does not take: kept in bounded memory, and obeyed, until they can be written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, replace

from kvswap.core.bounded import Table
from kvswap.store.quotas import LINES_OF_TRUSTED, LINES_OF_UNTRUSTED, joined_lines

_STATUS_RECORDS = 512
_STATUS_RECORDS_OF_A_SENDER = 32
_STATUS_RECORDS_BYTES = 16 << 20
_AUDITS = 1_024
_AUDITS_OF_A_SENDER = 256
_LINE_BYTES = 512  # of one artifact that is withdrawn, about


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An audit as it was signed, with the fields that it is looked up by."""

    id: str
    artifact: str
    document: str | None
    publisher: str
    auditor: str
    failed: bool
    envelope: bytes


@dataclass(frozen=True, slots=True)
class ReceivedStatusRecord:
    """A publisher status record as it was received, with what was withdrawn while nothing could be written."""

    sequence: int
    envelope: bytes
    withdrawn: dict[str, str]
    sender: str = ""  # the peer that told it
    held: Set[str] = frozenset()  # artifacts that are here
    kept: bool = False  # it gives way to nobody's


class Unwritten:
    """The status records by publisher and audits by id that wait for the disk.  May be used from any thread."""

    def __init__(self, keeps: Callable[[str], bool]) -> None:
        """`keeps(publisher)`: whose records give way to no other's; nor do those that withdraw what was here."""
        self._lock = threading.RLock()
        self._keeps = keeps
        self.status_records: Table[str, ReceivedStatusRecord] = Table(
            "heads to be written",
            entries=_STATUS_RECORDS,
            nbytes=_STATUS_RECORDS_BYTES,
            per_sender=_STATUS_RECORDS_OF_A_SENDER,
            keep=lambda publisher, status_record: (
                keeps(publisher) or not status_record.held.isdisjoint(status_record.withdrawn)
            ),
            size=lambda _, status_record: len(status_record.envelope) + len(status_record.withdrawn) * _LINE_BYTES,
        )
        self.audits: Table[str, AuditRow] = Table(
            "audits to be written",
            entries=_AUDITS,
            per_sender=_AUDITS_OF_A_SENDER,
            keep=lambda _, row: row.failed,  # what passed gives way before what failed
        )

    def __bool__(self) -> bool:
        return bool(len(self.status_records) or len(self.audits))

    def put_status_record(self, publisher: str, received: ReceivedStatusRecord) -> None:
        """Keep a status record; what its publisher withdrew before stays withdrawn."""
        with self._lock:
            known = self.status_records.peek(publisher)
            before, had = (known.withdrawn, known.held) if known is not None else ({}, frozenset[str]())
            here = frozenset(had) | frozenset(received.held)
            most = LINES_OF_TRUSTED if received.kept or self._keeps(publisher) else LINES_OF_UNTRUSTED
            kept = replace(received, withdrawn=joined_lines(before, received.withdrawn, here, most), held=here)
            self.status_records.put(publisher, kept, received.sender, held=received.kept)

    def status_record(self, publisher: str) -> ReceivedStatusRecord | None:
        """Return the status record of a publisher that waits; None without one."""
        with self._lock:
            return self.status_records.peek(publisher)

    def all_status_records(self) -> list[tuple[str, ReceivedStatusRecord]]:
        """Return all status records that wait, with their publishers."""
        with self._lock:
            return self.status_records.items()

    def written(self, publisher: str) -> None:
        """Forget a status record that is written."""
        with self._lock:
            self.status_records.pop(publisher)

    def withdrawn_of(self, artifacts: Collection[str]) -> dict[tuple[str, str], str]:
        """Return why artifacts were withdrawn, by artifact and publisher."""
        if not len(self.status_records):
            return {}
        records = self.all_status_records()
        return {
            (a, publisher): status_record.withdrawn[a]
            for publisher, status_record in records
            for a in artifacts
            if a in status_record.withdrawn
        }

    def put_audit(self, row: AuditRow) -> None:
        """Keep an audit."""
        with self._lock:
            self.audits.put(row.id, row, row.auditor)

    def drop_audit(self, name: str) -> None:
        """Forget an audit that is written."""
        with self._lock:
            self.audits.pop(name)

    def all_audits(self) -> list[AuditRow]:
        """Return the audits that wait."""
        with self._lock:
            return self.audits.values()
