"""What a node knows of its peers: how they did, whom it leaves alone, and what they ask for."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvswap.core.failures import is_own
from kvswap.core.ids import PeerId
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import describe
from kvswap.exchange.node.background import Background
from kvswap.exchange.node.counters import Counters
from kvswap.exchange.node.events import EventLog
from kvswap.exchange.node.grants import Grants
from kvswap.exchange.node.neighbours import Neighbours
from kvswap.net import Transport
from kvswap.store import Ledger, PeerRecord


class Peers:
    """The peers of one node."""

    def __init__(
        self, ledger: Ledger, transport: Transport, background: Background, events: EventLog, counters: Counters
    ) -> None:
        self.ledger = ledger
        self.neighbours = Neighbours(self.delivered)
        self.grants = Grants()
        self.leaving: set[Callable[[str], object]] = set()  # called with a peer that nothing is taken from any more
        self.on_cut_off: list[Callable[[str], object]] = []  # called with a peer that nothing is given to any more
        self._transport = transport
        self._background = background
        self._events = events
        self._counters = counters

    def record(self, peer: str) -> PeerRecord:
        """Return what is known of a peer; changes to it are kept."""
        return self.ledger.record(peer)

    def failed(self, peer: str, reason: str) -> None:
        """Note that a peer did not do what it should; it is left alone for a while."""
        with self.ledger.changing(peer) as record:
            record.failed(time.time())
        self._events.add("peer_failed", peer=peer, reason=reason)

    def blame(self, peer: str, error: BaseException) -> bool:
        """Hold an error of asking a peer against it, unless it is this side's own trouble; say whether it was.

        That it did not answer in time is the peer's.
        """
        if is_own(error) and not isinstance(error, TimeoutError):
            return False
        self.failed(peer, describe(error).removesuffix(":") if str(error) else "no answer in time")
        return True

    def lied(self, peer: str, reason: str, **about: str) -> None:
        """Note that a peer sent something else than it was asked for: not asked again for an hour."""
        with self.ledger.changing(peer) as record:
            record.lied(time.time())
        self._counters.rejected_chunks += 1
        self._events.add("peer_lied", peer=peer, reason=reason, **about)

    def flooded(self, peer: str, how: str) -> None:
        """Hang up on a peer that asks for more than it takes, and serve it again in a minute."""
        if self.neighbours.is_shunned(peer):
            return  # what was under way when it was cut off
        self.neighbours.shun(peer)
        with self.ledger.changing(peer) as record:
            record.failed(time.time())
        self._events.add("peer_flooded", peer=peer, reason=f"it {how}; not served for {LIMITS.shun_seconds:g} s")
        self._cut_off(peer)

    def _cut_off(self, peer: str) -> None:
        """End what is under way to a peer, on both planes."""
        for hang_up in self.on_cut_off:
            hang_up(peer)
        if self._transport.alive:
            self._background.spawn(self._transport.disconnect(peer))

    def unwelcome(self, peer: str) -> bool:
        """Say whether nothing is given to a peer at all: it is blocked, or flooded lately."""
        return self.ledger.blocked(peer) or self.neighbours.is_shunned(peer)

    def resting(self, peer: str) -> float:
        """Return for how many seconds a peer is better not asked; after a mere failure until it comes anew."""
        if self.ledger.blocked(peer):
            return float("inf")
        since = self._transport.connected_since(peer)
        return self.ledger.resting(peer, LIMITS.backoff_seconds, LIMITS.lie_seconds, since)

    def paused(self, peer: str) -> bool:
        """Say whether a peer that delivered rests for failures alone: not for a lie, nor blocked or shunned."""
        rests = self.resting(peer) > 0
        return rests and self.delivered(peer) and not self.ledger.lies(peer) and not self.unwelcome(peer)

    def delivered(self, peer: str) -> bool:
        """Say whether this peer ever gave what it was asked for: what is new pushes nothing of it out."""
        return self.ledger.delivered(peer)

    def asks(self, peer: str, per_gb: float) -> None:
        """Note what a peer wants for a gigabyte, in US dollars."""
        self.neighbours.asks(peer, per_gb)

    def price(self, peer: str) -> float:
        """Return what a peer wants for a gigabyte, in US dollars, as far as known."""
        return self.neighbours.price(peer)

    def block(self, peer: str, blocked: bool) -> None:
        """Neither serve nor ask a peer, from now on; or do so again, its past forgiven.  On the event loop.

        What is under way to it ends at once, and what is under way from it.  Raises `UsageError` for more than can be
        remembered.
        """
        peer = str(PeerId.parse(peer))
        self.ledger.block(peer, blocked)
        if blocked:
            for leave in list(self.leaving):
                leave(peer)
            self._cut_off(peer)
        self._events.add("blocked" if blocked else "unblocked", peer=peer)
