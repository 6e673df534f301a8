"""The present state of peers: which are throttled, which have no bulk channel, and what price they ask."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvswap.core.bounded import Table
from kvswap.core.limits import LIMITS

_PEERS = 4_096
_WITHOUT_BULK_SECONDS = 600.0


class Neighbours:
    """The state of peers that holds for a while, in bounded tables by peer."""

    def __init__(self, delivered: Callable[[str], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`delivered(peer)`: whether it ever gave what it was asked for; what is known of such a peer is kept."""
        self._clock = clock
        self.throttled: Table[str, float] = Table("peers shunned", entries=_PEERS, size=_small)
        self.no_bulk: Table[str, float] = Table("peers without bulk", entries=_PEERS, size=_small)
        self.prices: Table[str, float] = Table(
            "prices", entries=_PEERS, size=_small, keep=lambda peer, price: delivered(peer)
        )

    def throttle(self, peer: str) -> None:
        """Do not serve a peer for a minute."""
        self.throttled.put(peer, self._clock() + LIMITS.throttle_seconds, peer)

    def is_throttled(self, peer: str) -> bool:
        """Return True if a peer is throttled: it is not served just now."""
        return (self.throttled.get(peer) or 0.0) > self._clock()

    def without_bulk(self, peer: str) -> None:
        """Note that the HTTPS port of a peer is not reached: its chunks come over libp2p for a while."""
        self.no_bulk.put(peer, self._clock() + _WITHOUT_BULK_SECONDS, peer)

    def has_bulk(self, peer: str) -> bool:
        """Return True if the HTTPS port of a peer is worth trying."""
        return (self.no_bulk.get(peer) or 0.0) <= self._clock()

    def set_ask_price(self, peer: str, per_gb: float) -> None:
        """Note the price that a peer asks for a gigabyte, in US dollars."""
        self.prices.put(peer, per_gb, peer)

    def price(self, peer: str) -> float:
        """Return the price that a peer asks for a gigabyte, in US dollars; 0 where it is not known."""
        return self.prices.get(peer) or 0.0


def _small(key: str, value: float) -> int:
    return 2 * len(key) + 64
