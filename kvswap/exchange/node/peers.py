"""The peers that a node knows: their records, which of them are left alone, and the prices they ask."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvswap.core.failures import is_own
from kvswap.core.ids import PeerId
from kvswap.core.limits import LIMITS
from kvswap.core.upkeep import describe
from kvswap.exchange.node.background import Background
from kvswap.exchange.node.bulk_tickets import BulkTickets
from kvswap.exchange.node.counters import Counters
from kvswap.exchange.node.events import EventLog
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
        self.bulk_tickets = BulkTickets()
        self.leaving: set[Callable[[str], object]] = set()  # called with a peer that nothing is taken from any more
        self.on_cut_off: list[Callable[[str], object]] = []  # called with a peer that nothing is given to any more
        self._transport = transport
        self._background = background
        self._events = events
        self._counters = counters

    def record(self, peer: str) -> PeerRecord:
        """Return the record of a peer, as it is now; to change one, use `ledger.changing`."""
        return self.ledger.record(peer)

    def failed(self, peer: str, reason: str) -> None:
        """Record that a peer failed; it is in backoff for a while."""
        with self.ledger.changing(peer) as record:
            record.failed(time.time())
        self._events.add("peer_failed", peer=peer, reason=reason)

    def blame(self, peer: str, error: BaseException) -> bool:
        """Record an error of a request as the peer's failure, unless it is this node's own trouble.

        Returns True if it was recorded.  An answer that does not come in time is the peer's failure.
        """
        if is_own(error) and not isinstance(error, TimeoutError):
            return False
        self.failed(peer, describe(error).removesuffix(":") if str(error) else "no answer in time")
        return True

    def sent_invalid_data(self, peer: str, reason: str, **about: str) -> None:
        """Record that a peer sent invalid data: it is not asked again for an hour."""
        with self.ledger.changing(peer) as record:
            record.count_invalid_data(time.time())
        self._counters.rejected_chunks += 1
        self._events.add("peer_lied", peer=peer, reason=reason, **about)

    def flooded(self, peer: str, how: str) -> None:
        """Disconnect a peer that asks for more than it takes, and throttle it for a minute."""
        if self.neighbours.is_throttled(peer):
            return  # what was under way when it was cut off
        self.neighbours.throttle(peer)
        with self.ledger.changing(peer) as record:
            record.failed(time.time())
        self._events.add("peer_flooded", peer=peer, reason=f"it {how}; not served for {LIMITS.throttle_seconds:g} s")
        self._cut_off(peer)

    def _cut_off(self, peer: str) -> None:
        """End what is under way to a peer, on both channels."""
        for hang_up in self.on_cut_off:
            hang_up(peer)
        if self._transport.alive:
            self._background.spawn(self._transport.disconnect(peer))

    def unwelcome(self, peer: str) -> bool:
        """Return True if a peer is given nothing at all: it is blocked, or throttled for flooding."""
        return self.ledger.blocked(peer) or self.neighbours.is_throttled(peer)

    def backoff_seconds(self, peer: str) -> float:
        """Return the seconds for which a peer should not be asked; after a mere failure a new connection ends them."""
        if self.ledger.blocked(peer):
            return float("inf")
        since = self._transport.connected_since(peer)
        return self.ledger.backoff_seconds(peer, LIMITS.backoff_seconds, LIMITS.invalid_data_seconds, since)

    def paused(self, peer: str) -> bool:
        """Return True if a peer that delivered is in backoff for mere failures: not for invalid data, nor blocked."""
        rests = self.backoff_seconds(peer) > 0
        return rests and self.delivered(peer) and not self.ledger.sends_invalid_data(peer) and not self.unwelcome(peer)

    def delivered(self, peer: str) -> bool:
        """Return True if this peer ever gave what it was asked for; new entries never push out what is kept of it."""
        return self.ledger.delivered(peer)

    def set_ask_price(self, peer: str, per_gb: float) -> None:
        """Note the price that a peer asks for a gigabyte, in US dollars."""
        self.neighbours.set_ask_price(peer, per_gb)

    def price(self, peer: str) -> float:
        """Return the price that a peer asks for a gigabyte, in US dollars; 0 where it is not known."""
        return self.neighbours.price(peer)

    def block(self, peer: str, blocked: bool) -> None:
        """Block a peer, which is then neither served nor asked, or unblock it and forget its past.

        Transfers to it and from it end at once.  Call on the event loop.  Raises `UsageError` for more blocked peers
        than can be remembered.
        """
        peer = str(PeerId.parse(peer))
        self.ledger.block(peer, blocked)
        if blocked:
            for leave in list(self.leaving):
                leave(peer)
            self._cut_off(peer)
        self._events.add("blocked" if blocked else "unblocked", peer=peer)
