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
from kvswap.store import HeadFiles, Records
from kvswap.store.unwritten import ToldHead
from kvswap.trust import Groups, PolicyFile
from kvswap.trust.head import Head, read_head


class Trust:
    """The policy, records, standings and groups of one node."""

    def __init__(self, home: Path, policy: PolicyFile, problems: Problems) -> None:
        self._problems = problems
        self.policy = policy
        self.groups = Groups(home / "keys" / "groups")
        self.records = Records(home / "trust.sqlite3", lambda publisher: self.policy.policy.trusts(publisher), problems)
        self.standings = Standings(self.records, policy)
        self.head_files = HeadFiles(home / "heads")
        self.to_follow: dict[str, Head] = {}  # of trusted publishers, whose successors the trust list has still to take
        self.heads_lock = threading.RLock()  # a sequence is signed once, and no older head takes the place of a newer
        self.on_head: list[Callable[[str, str, bool], None]] = []  # called with peer, publisher, and whether it is new

    def head_came(self, peer: str, publisher: str, newer: bool) -> None:
        """Notify all listeners that a peer gave a publisher status record at least as new as ours.  From any thread."""
        for listener in self.on_head:
            listener(peer, publisher, newer)

    def match_heads(self, identity: Identity) -> None:
        """Make files and database agree: status records of our own and of trusted publishers are in both."""
        restored = 0
        for publisher, envelope in self.head_files.all():
            with contextlib.suppress(KvswapError):
                head = read_head(envelope).head
                known = self.records.head(publisher)
                if head.publisher == publisher and (known is None or known[0] < head.sequence):
                    self.records.hear_head(publisher, ToldHead(head.sequence, envelope, head.reasons, kept=True))
                    restored += 1
        for publisher in (identity.own, *identity.retired, *self.policy.policy.publishers):
            known = self.records.head(publisher) if not self.head_files.has(publisher) else None
            if known is not None:
                self.head_files.put(publisher, known[1])
        if restored and self.records.empty:
            text = f"trust.sqlite3 was damaged or gone: {restored} head records are restored, checks and audits are not"
            self._problems.note("trust", text)
