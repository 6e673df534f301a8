"""Tokens that came with look-ups are good for the artifact that was found, and not for long."""

from __future__ import annotations

from kvswap.exchange.node.grants import Grants
from kvswap.net import messages

RECORD = messages.BulkRecord("peer", 4242, bytes(32), 1, bytes(64))


def grant(token: str, seconds: int = 600) -> messages.Grant:
    return messages.Grant(token, seconds, RECORD)


def test_a_grant_is_for_what_its_peer_has_whole_and_for_a_short_time() -> None:
    now = 0.0
    grants = Grants(lambda: now)
    grants.put("a", grant("one"), ["x", "y"])
    assert grants.of("a", "x") == grants.of("a", "y") == grant("one")
    assert grants.of("a", "z") is None and grants.of("b", "x") is None
    grants.put("a", grant("two", seconds=3), ["x"])  # asked again: the last answer counts
    assert grants.of("a", "x") == grant("two", seconds=3) and grants.of("a", "y") is None
    now = 3.0
    assert grants.of("a", "x") is None
    grants.put("a", grant("three"), ["x"])
    now = 13.0
    assert grants.of("a", "x") is None


def test_grants_are_bounded() -> None:
    grants = Grants()
    for number in range(1000):
        grants.put(str(number), grant("t"), ["x"])
    held = [n for n in range(1000) if grants.of(str(n), "x") is not None]
    assert held == list(range(744, 1000))
