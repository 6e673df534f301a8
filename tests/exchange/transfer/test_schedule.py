"""The schedule under a simulated clock: peers of given rates, which may freeze, die, or hold only a part."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.limits import LIMITS
from kvswap.exchange.transfer.schedule import Schedule

STEP = 0.01


@dataclass
class SimulatedPeer:
    rate: float
    has: set[int] | None = None  # None: everything
    freezes_at: float = float("inf")
    dies_at: float = float("inf")
    open: dict[int, float] = field(default_factory=dict)  # chunk -> bytes so far
    sent: float = 0.0


def simulate(lengths: list[int], peers: dict[str, SimulatedPeer], until: float = 1000.0, seed: int = 1) -> float:
    """Run to the end and return the simulated seconds; every chunk is received exactly as often as it is counted."""
    schedule = Schedule(lengths, rng=random.Random(seed))
    for name, peer in peers.items():
        schedule.set_peer(name, range(len(lengths)) if peer.has is None else peer.has)
    now = 0.0
    while not schedule.complete:
        assert now < until, "the transfer hangs"
        for name, peer in list(peers.items()):
            if now >= peer.dies_at:
                if name in schedule.peers():
                    schedule.drop_peer(name)
                    peer.open.clear()
                continue
            while (chunk := schedule.next(name, now)) is not None:
                assert chunk not in peer.open
                assert peer.has is None or chunk in peer.has
                peer.open[chunk] = 0.0
            assert len(peer.open) <= LIMITS.chunks_per_peer
            if now >= peer.freezes_at or not peer.open:
                continue
            share = peer.rate * STEP / len(peer.open)
            for chunk in list(peer.open):
                if chunk not in peer.open:
                    continue
                before = int(peer.open[chunk])
                peer.open[chunk] = min(lengths[chunk], peer.open[chunk] + share)
                peer.sent += int(peer.open[chunk]) - before
                schedule.progress(name, chunk, int(peer.open[chunk]) - before, now)
                if peer.open[chunk] >= lengths[chunk]:
                    del peer.open[chunk]
                    losers = schedule.received(name, chunk)
                    assert losers is not None
                    for loser in losers:
                        peers[loser].open.pop(chunk)
                    schedule.done(chunk)
        now += STEP
    assert schedule.left == 0 and schedule.left_bytes == 0
    return now


CHUNKS = [2_000_000] * 60


def test_four_peers_are_nearly_four_times_one() -> None:
    one = simulate(CHUNKS, {"a": SimulatedPeer(12.5e6)})
    four = simulate(CHUNKS, {name: SimulatedPeer(12.5e6) for name in "abcd"})
    assert one / four > 3.6


def test_a_slow_one_among_four_costs_little() -> None:
    """Against what the four links carry together."""
    peers = {name: SimulatedPeer(12.5e6) for name in "abc"} | {"slow": SimulatedPeer(12.5e6 / 20)}
    ideal = sum(CHUNKS) / (3.05 * 12.5e6)
    assert simulate(CHUNKS, peers) < ideal / 0.85


@pytest.mark.parametrize("end", ["freezes_at", "dies_at"])
def test_one_that_freezes_or_dies_half_way_loses_its_work(end: str) -> None:
    peers = {name: SimulatedPeer(12.5e6) for name in "abc"}
    setattr(peers["a"], end, 1.0)
    took = simulate(CHUNKS, peers)
    assert took < 1.0 + (sum(CHUNKS) - 37.5e6) / 25e6 + 3.0


def test_what_only_a_slow_peer_has_still_comes() -> None:
    peers = {"fast": SimulatedPeer(50e6, set(range(59))), "slow": SimulatedPeer(1e6, {59})}
    assert simulate(CHUNKS, peers) < 5


def test_hedging_stays_within_its_share() -> None:
    peers = {name: SimulatedPeer(rate) for name, rate in zip("abcdef", (9e6, 7e6, 5e6, 3e6, 2e6, 1e6), strict=True)}
    simulate(CHUNKS, peers)
    assert sum(p.sent for p in peers.values()) < 1.15 * sum(CHUNKS)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mix_of_peers_ends_if_the_living_have_everything(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 40))
    lengths = data.draw(st.lists(st.integers(1, 3_000_000), min_size=count, max_size=count))
    peers = {"whole": SimulatedPeer(data.draw(st.floats(1e6, 1e8)))}
    for number in range(data.draw(st.integers(0, 5))):
        peers[str(number)] = SimulatedPeer(
            data.draw(st.floats(1e3, 1e8)),
            data.draw(st.none() | st.sets(st.integers(0, count - 1))),
            data.draw(st.floats(0, 5) | st.just(float("inf"))),
            data.draw(st.floats(0, 5) | st.just(float("inf"))),
        )
    simulate(lengths, peers, seed=data.draw(st.integers(0, 100)))


def test_the_rarest_of_a_wave_goes_first_and_waves_in_order() -> None:
    schedule = Schedule([10] * 8, wave=4, rng=random.Random(3))
    schedule.set_peer("a", range(8))
    schedule.set_peer("b", [0, 1, 3, 4, 5, 6, 7])
    assert schedule.next("a", 0.0) == 2
    schedule.received("a", 2)
    schedule.done(2)
    rest = []
    for _ in range(7):
        chunk = schedule.next("a", 0.0)
        assert chunk is not None
        rest.append(chunk)
        schedule.received("a", chunk)
        schedule.done(chunk)
    assert sorted(rest[:3]) == [0, 1, 3] and sorted(rest[3:]) == [4, 5, 6, 7]


def test_readers_that_start_together_ask_for_different_chunks() -> None:
    first = set()
    for reader in range(8):
        schedule = Schedule([10] * 30, rng=random.Random(reader))
        schedule.set_peer("publisher", range(30))
        first.add(schedule.next("publisher", 0.0))
    assert len(first) >= 5


def test_a_wrong_chunk_is_wanted_again_and_a_late_one_is_not_taken() -> None:
    schedule = Schedule([10], rng=random.Random(0))
    schedule.set_peer("a", [0])
    schedule.set_peer("b", [0])
    assert schedule.next("a", 0.0) == 0 and schedule.next("b", 0.1) is None
    assert schedule.next("b", 5.0) == 0  # a is silent
    assert schedule.received("b", 0) == ["a"]
    schedule.failed("a", 0)  # the loser's end changes nothing
    assert schedule.next("a", 6.0) is None and not schedule.complete
    assert schedule.received("a", 0) is None
    schedule.failed("b", 0)  # its bytes were wrong
    schedule.drop_peer("b")
    assert schedule.next("a", 7.0) == 0
    assert schedule.received("a", 0) == []
    schedule.done(0)
    assert schedule.complete


def test_the_slowest_that_is_waited_for() -> None:
    schedule = Schedule([10_000_000])
    schedule.set_peer("a", [0])
    assert schedule.next("a", 0.0) == 0
    for second in range(1, 60):
        schedule.progress("a", 0, 1000, float(second))
        if schedule.slow("a", float(second)):
            assert second > LIMITS.slow_seconds
            return
    raise AssertionError("1 KB/s is waited for for ever")


def besieged(kind: str, invalid_senders: int, *, known: bool, seconds: float = 30.0) -> float:
    """Simulated seconds with one good peer, and liars of which each that is done for is followed by another."""
    lengths = [1_400_000] * 16
    good, now = SimulatedPeer(80e6), 0.0
    schedule = Schedule(lengths, rng=random.Random(2))
    schedule.set_peer("good", range(16), 80e6 if known else None)
    began: dict[tuple[str, int], float] = {}
    names = [f"liar {n}" for n in range(invalid_senders)]
    for name in names:
        schedule.set_peer(name, range(16))
    while not schedule.complete and now < seconds:
        for name in [*names]:
            while (chunk := schedule.next(name, now)) is not None:
                began[name, chunk] = now
            for (who, chunk), since in [*began.items()]:
                if who != name:
                    continue
                if kind == "drips":
                    schedule.progress(name, chunk, 50, now)
                elif kind == "fails" and now > since + 0.1:
                    schedule.failed(name, chunk)
                    began.pop((name, chunk))
                elif kind == "lies" and now > since + 0.3:  # its bytes are wrong: another comes in its place
                    schedule.received(name, chunk)
                    schedule.failed(name, chunk)
                    schedule.drop_peer(name)
                    began = {k: v for k, v in began.items() if k[0] != name}
                    names[names.index(name)] = name + "'"
                    schedule.set_peer(name + "'", range(16))
                    break
        while (chunk := schedule.next("good", now)) is not None:
            good.open[chunk] = 0.0
        for chunk in [*good.open]:
            good.open[chunk] += good.rate * STEP / max(1, len(good.open))
            schedule.progress("good", chunk, int(good.rate * STEP / len(good.open)), now)
            if good.open[chunk] >= lengths[chunk]:
                good.open.pop(chunk)
                if schedule.received("good", chunk) is not None:
                    schedule.done(chunk)
        now += STEP
    return now


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("invalid_senders", [1, 4, 15])
@pytest.mark.parametrize("kind", ["silent", "drips", "fails", "lies"])
def test_those_that_never_gave_anything_hold_up_nobody_who_did(kind: str, invalid_senders: int, known: bool) -> None:
    """However many come, and come again: alone it takes 0.3 s.  Nobody knows yet who is good where nobody gave anything."""
    assert besieged(kind, invalid_senders, known=known) < (1.6 if known else 5.0)
