"""The trust of a node: whom it trusts, and what it remembers of publishers and artifacts."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from kvswap.core.errors import KvswapError
from kvswap.core.upkeep import Problems
from kvswap.exchange.node.identity import Identity
from kvswap.exchange.node.standing import Standings
from kvswap.store import Records, StatusFiles
from kvswap.store.unwritten import ReceivedStatusRecord
from kvswap.trust import Groups, PolicyFile
from kvswap.trust.status_record import StatusRecord, read_status_record


class Trust:
    """The policy, records, standings and groups of one node."""

    def __init__(self, home: Path, policy: PolicyFile, problems: Problems) -> None:
        self._problems = problems
        self.policy = policy
        self.groups = Groups(home / "keys" / "groups")
        self.records = Records(home / "trust.sqlite3", lambda publisher: self.policy.policy.trusts(publisher), problems)
        self.standings = Standings(self.records, policy)
        self.status_files = StatusFiles(home / "heads")
        self.to_follow: dict[
            str, StatusRecord
        ] = {}  # of trusted publishers, whose successors the trust list has still to take
        self.status_lock = threading.RLock()  # a sequence is signed once, and no older head takes the place of a newer
        self.on_status_record: list[
            Callable[[str, str, bool], None]
        ] = []  # called with peer, publisher, and whether it is new

    def notify_status_record(self, peer: str, publisher: str, newer: bool) -> None:
        """Notify all listeners that a peer gave a publisher status record at least as new as ours.  From any thread."""
        for listener in self.on_status_record:
            listener(peer, publisher, newer)

    def reconcile_status_files(self, identity: Identity) -> None:
        """Make files and database agree: status records of our own and of trusted publishers are in both."""
        restored = 0
        for publisher, envelope in self.status_files.all():
            with contextlib.suppress(KvswapError):
                record = read_status_record(envelope).record
                known = self.records.status_record(publisher)
                if record.publisher == publisher and (known is None or known[0] < record.sequence):
                    self.records.receive_status_record(
                        publisher, ReceivedStatusRecord(record.sequence, envelope, record.reasons, kept=True)
                    )
                    restored += 1
        for publisher in (identity.own, *identity.retired, *self.policy.policy.publishers):
            known = self.records.status_record(publisher) if not self.status_files.has(publisher) else None
            if known is not None:
                self.status_files.put(publisher, known[1])
        if restored and self.records.empty:
            text = (
                f"trust.sqlite3 was damaged or gone: {restored} status records are restored, checks and audits are not"
            )
            self._problems.note("trust", text)
