"""Inquiries at publishers: of an artifact that is here, its publisher's status record says whether it still holds.

Whoever announces it is asked, if it once said that it is the publisher.  That is its word alone, so nobody waits for
it: several peers are asked beside each other and each for one artifact at a time, who is slow makes way, and whose
turn was longest ago is next.  Who gave no status record of that publisher, or slowly one that was known, is not asked
for a while; who gives it at once is asked each time, as the next may withdraw something.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from kvswap.core.bounded import Table
from kvswap.core.errors import KvswapError
from kvswap.exchange.discovery.lookup import find
from kvswap.exchange.node.node import AGENT, Node
from kvswap.net import messages

_WAITING = 256
_OF_ONE_PEER = 64
_AT_ONCE = 8  # peers that are asked,
_SLOW_SECONDS = 1.5  # who takes longer makes way for one more,
_UNDER_WAY = 24  # up to so many
_BACKOFF_PEERS = 1_024
_BACKOFF_SECONDS = 600.0


@dataclass(slots=True)
class _Query:
    """A peer that is being asked, since when (monotonic), and what it gave of the publisher."""

    since: float
    publisher: str = ""
    answered: bool = False  # a status record that is at least the one we had,
    newer: bool = False  # or one that we had not


class StatusQueries:
    """The queue of announced artifacts whose publishers are asked again, where the artifact is here."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._turn: Iterator[int] = count()
        self.table: Table[tuple[str, str], int] = Table(  # of (artifact, peer): when it came
            "announcements to look up", entries=_WAITING, per_sender=_OF_ONE_PEER
        )
        self.backoff: Table[str, float] = Table(
            "peers that speak for no publisher", entries=_BACKOFF_PEERS
        )  # until when
        self.last: Table[str, int] = Table("peers asked for their word", entries=_BACKOFF_PEERS)  # at which turn
        self.under_way: dict[str, _Query] = {}  # by peer

    def note(self, artifact: str, peer: str) -> None:
        """Note that a peer announced an artifact.  Of too many the oldest is forgotten: it is announced again."""
        if not self._node.ledger.publisher(peer) or (self.backoff.peek(peer) or 0.0) > time.monotonic():
            return  # it never said whose it is, or said so in vain
        if (artifact, peer) not in self.table:
            self.table.put((artifact, peer), next(self._turn), peer)
        self._start()

    def note_answer(self, peer: str, publisher: str, newer: bool) -> None:
        """Note that a peer gave a publisher status record at least as new as ours.  May be called from any thread."""
        asked = self.under_way.get(peer)
        if asked is not None and asked.publisher == publisher:
            asked.answered, asked.newer = True, asked.newer or newer

    def _start(self) -> None:
        """Ask the peers whose turn it is."""
        now = time.monotonic()
        fast = sum(asked.since > now - _SLOW_SECONDS for asked in self.under_way.values())
        while self._node.p2p and fast < _AT_ONCE and len(self.under_way) < _UNDER_WAY:
            waiting = [(max(at, self.last.peek(key[1]) or 0), key) for key, at in self.table.items()]
            turns = [(turn, key) for turn, key in waiting if key[1] not in self.under_way]
            if not turns:
                return
            _, (artifact, peer) = min(turns)
            self.table.pop((artifact, peer))
            self.under_way[peer] = _Query(now)
            self._node.background.spawn(self._ask(artifact, peer))
            fast += 1

    async def _ask(self, artifact: str, peer: str) -> None:
        asked, ours = self.under_way[peer], False
        try:
            asked.publisher = await asyncio.to_thread(self._whose, artifact, peer)
            if asked.publisher:
                asked.since = time.monotonic()
                asyncio.get_running_loop().call_later(_SLOW_SECONDS + 0.01, self._start)
                await find(self._node, messages.Find(AGENT, artifact=artifact), only=[peer])
        except KvswapError:
            ours = True  # what is the peer's is no error: it gave nothing
        finally:
            del self.under_way[peer]
        self.last.put(peer, next(self._turn))
        slow = time.monotonic() - asked.since > _SLOW_SECONDS
        if asked.publisher and not (asked.newer or (asked.answered and not slow) or ours or not self._node.p2p):
            self.backoff.put(peer, time.monotonic() + _BACKOFF_SECONDS)
            for key in [key for key in self.table if key[1] == peer]:
                self.table.pop(key)
        self._start()

    def _whose(self, artifact: str, peer: str) -> str:
        """Return the publisher of an artifact that is here and that a peer said is its own; empty for others."""
        row = self._node.store.get_artifact(artifact)
        return row.publisher if row is not None and row.publisher == self._node.ledger.publisher(peer) else ""
