"""Statements of peers that the disk does not take: kept in bounded memory, and obeyed, until they can be written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Set
from dataclasses import dataclass, replace

from kvswap.core.bounded import Table
from kvswap.store.rooms import LINES_OF_A_STRANGER, LINES_OF_TRUSTED, joined_lines

_HEADS = 512
_HEADS_OF_A_TELLER = 32
_HEADS_BYTES = 16 << 20
_AUDITS = 1_024
_AUDITS_OF_A_TELLER = 256
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
class ToldHead:
    """A publisher status record as it was received, with what was withdrawn while nothing could be written."""

    sequence: int
    envelope: bytes
    withdrawn: dict[str, str]
    teller: str = ""  # the peer that told it
    held: Set[str] = frozenset()  # artifacts that are here
    kept: bool = False  # it gives way to nobody's


class Unwritten:
    """The status records by publisher and audits by id that wait for the disk.  May be used from any thread."""

    def __init__(self, keeps: Callable[[str], bool]) -> None:
        """`keeps(publisher)`: whose heads give way to no stranger's; nor do those that withdraw what was here."""
        self._lock = threading.RLock()
        self._keeps = keeps
        self.heads: Table[str, ToldHead] = Table(
            "heads to be written",
            entries=_HEADS,
            nbytes=_HEADS_BYTES,
            per_teller=_HEADS_OF_A_TELLER,
            keep=lambda publisher, head: keeps(publisher) or not head.held.isdisjoint(head.withdrawn),
            size=lambda _, head: len(head.envelope) + len(head.withdrawn) * _LINE_BYTES,
        )
        self.audits: Table[str, AuditRow] = Table(
            "audits to be written",
            entries=_AUDITS,
            per_teller=_AUDITS_OF_A_TELLER,
            keep=lambda _, row: row.failed,  # what passed gives way before what failed
        )

    def __bool__(self) -> bool:
        return bool(len(self.heads) or len(self.audits))

    def put_head(self, publisher: str, told: ToldHead) -> None:
        """Keep a status record; what its publisher withdrew before stays withdrawn."""
        with self._lock:
            known = self.heads.peek(publisher)
            before, had = (known.withdrawn, known.held) if known is not None else ({}, frozenset[str]())
            here = frozenset(had) | frozenset(told.held)
            most = LINES_OF_TRUSTED if told.kept or self._keeps(publisher) else LINES_OF_A_STRANGER
            kept = replace(told, withdrawn=joined_lines(before, told.withdrawn, here, most), held=here)
            self.heads.put(publisher, kept, told.teller, held=told.kept)

    def head(self, publisher: str) -> ToldHead | None:
        """Return the status record of a publisher that waits; None without one."""
        with self._lock:
            return self.heads.peek(publisher)

    def all_heads(self) -> list[tuple[str, ToldHead]]:
        """Return all status records that wait, with their publishers."""
        with self._lock:
            return self.heads.items()

    def written(self, publisher: str) -> None:
        """Forget a status record that is written."""
        with self._lock:
            self.heads.pop(publisher)

    def withdrawn_of(self, artifacts: Collection[str]) -> dict[tuple[str, str], str]:
        """Return why artifacts were withdrawn, by artifact and publisher."""
        if not len(self.heads):
            return {}
        heads = self.all_heads()
        return {
            (a, publisher): head.withdrawn[a] for publisher, head in heads for a in artifacts if a in head.withdrawn
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
