"""Tokens that came with look-ups are good for the artifact that was found, and not for long."""

from __future__ import annotations

from kvswap.exchange.node.bulk_tickets import BulkTickets
from kvswap.net import messages

RECORD = messages.BulkRecord("peer", 4242, bytes(32), 1, bytes(64))


def grant(token: str, seconds: int = 600) -> messages.BulkTicket:
    return messages.BulkTicket(token, seconds, RECORD)


def test_a_grant_is_for_what_its_peer_has_whole_and_for_a_short_time() -> None:
    now = 0.0
    bulk_tickets = BulkTickets(lambda: now)
    bulk_tickets.put("a", grant("one"), ["x", "y"])
    assert bulk_tickets.of("a", "x") == bulk_tickets.of("a", "y") == grant("one")
    assert bulk_tickets.of("a", "z") is None and bulk_tickets.of("b", "x") is None
    bulk_tickets.put("a", grant("two", seconds=3), ["x"])  # asked again: the last answer counts
    assert bulk_tickets.of("a", "x") == grant("two", seconds=3) and bulk_tickets.of("a", "y") is None
    now = 3.0
    assert bulk_tickets.of("a", "x") is None
    bulk_tickets.put("a", grant("three"), ["x"])
    now = 13.0
    assert bulk_tickets.of("a", "x") is None


def test_grants_are_bounded() -> None:
    bulk_tickets = BulkTickets()
    for number in range(1000):
        bulk_tickets.put(str(number), grant("t"), ["x"])
    held = [n for n in range(1000) if bulk_tickets.of(str(n), "x") is not None]
    assert held == list(range(744, 1000))
