"""Bulk tickets that came with the answers to look-ups.

A peer that has an artifact whole hands over a ticket when it is found there: its chunks can be requested
at once, a round trip sooner than after joining.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from kvswap.core.bounded import Table
from kvswap.core.limits import MIB
from kvswap.net import messages

_FRESH_SECONDS = 10.0  # a look-up is followed by its transfer, or not at all
_KEPT = 256


class BulkTickets:
    """The latest bulk ticket of each peer, kept for ten seconds at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.table: Table[str, tuple[messages.BulkTicket, frozenset[str], float]] = Table(
            "grants", entries=_KEPT, nbytes=4 * MIB
        )

    def put(self, peer: str, ticket: messages.BulkTicket, artifacts: Iterable[str]) -> None:
        """Keep a peer's ticket for the artifacts that the peer says it has whole."""
        until = self._clock() + min(_FRESH_SECONDS, ticket.seconds)
        self.table.put(peer, (ticket, frozenset(artifacts), until), peer)

    def of(self, peer: str, artifact: str) -> messages.BulkTicket | None:
        """Return the ticket that opens the chunks of this artifact at this peer, if it was found there just now."""
        ticket, artifacts, until = self.table.get(peer) or (None, frozenset(), 0.0)
        return ticket if artifact in artifacts and self._clock() < until else None
