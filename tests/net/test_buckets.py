"""Token buckets of the serving end."""

from __future__ import annotations

from kvswap.core.limits import LIMITS
from kvswap.net.server import Buckets


def test_so_many_at_once_and_then_a_rate() -> None:
    now = 0.0
    buckets = Buckets(2.0, 5.0, clock=lambda: now)
    assert [buckets.wait("a") for _ in range(6)] == [0, 0, 0, 0, 0, 0.5]
    assert buckets.wait("b") == 0  # each peer has its own
    now = 1.0  # two more by now
    assert [buckets.wait("a") for _ in range(2)] == [0, 0.5]
    now = 100.0
    assert [buckets.wait("a") for _ in range(5)] == [0] * 5


def test_what_costs_more_counts_more() -> None:
    buckets = Buckets(2.0, 6.0, clock=lambda: 0.0)
    assert [buckets.wait("a", 3) for _ in range(3)] == [0, 0, 1.5]


def test_who_is_refused_owes_nothing() -> None:
    now = 0.0
    buckets = Buckets(2.0, 5.0, clock=lambda: now)
    assert [buckets.take("a") for _ in range(100)] == [True] * 5 + [False] * 95
    now = 1.0
    assert [buckets.take("a") for _ in range(4)] == [True, True, False, False]


def test_twice_the_rate_at_once_unless_told_otherwise() -> None:
    buckets = Buckets(3.0, clock=lambda: 0.0)
    assert [buckets.wait("a") > 0 for _ in range(7)] == [False] * 6 + [True]


def test_a_peer_that_freezes_with_all_it_may_ask_for_is_no_flood() -> None:
    """Its chunks under way and its control stream are left unread together; a flood leaves more, for longer."""
    buckets = Buckets(LIMITS.offences_per_second, LIMITS.offences_at_once, clock=lambda: 0.0)
    assert not any(buckets.wait("frozen") for _ in range(LIMITS.chunks_per_peer + 2))
    now = 0.0
    flood = Buckets(LIMITS.offences_per_second, LIMITS.offences_at_once, clock=lambda: now)
    waits = []
    for second in range(60):  # a full set of streams, each ended by its time-out after a quarter of a minute
        now = second * 15 / LIMITS.streams_per_peer
        waits.append(flood.wait("flood"))
    assert any(waits)
