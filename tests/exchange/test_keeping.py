"""The upkeep of a node goes on: through errors, through the end of the network part, through peers that come and go."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvswap.core import upkeep
from kvswap.core.errors import P2pDown
from kvswap.core.ids import Cid, document_key
from kvswap.exchange.fetch import fetch
from kvswap.exchange.serving import upkeep as keeping
from kvswap.exchange.serving.upkeep import Announcing
from kvswap.net import Unreachable
from tests.exchange.test_fetch import SERVICES, World, world
from tests.support import key, make_artifact, run


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FLUSH_SECONDS", "_BOOTSTRAP_SECONDS", "_LOOK_SECONDS", "_SETTLE_SECONDS"):
        monkeypatch.setattr(keeping, name, 0.01)
    monkeypatch.setattr(upkeep.Backoff, "after", lambda self, failures: 0.01)


async def shown(node: Any, name: str, there: bool = True) -> None:
    while (name in node.problems) != there:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    "error", [sqlite3.DatabaseError("malformed"), ValueError("x"), sqlite3.OperationalError("locked"), P2pDown("y")]
)
def test_an_error_costs_one_round_of_each_loop_and_is_shown(error: Exception, tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(bootstrap=("/memory/x/p2p/x",))
            broken, rounds = True, Counter[str]()

            def breaks(name: str, right: Any) -> Any:
                def function(*arguments: Any) -> Any:
                    rounds[name] += 1
                    if broken:
                        raise error
                    return right(*arguments)

                return function

            node.ledger.flush = breaks("ledger", node.ledger.flush)
            node.transport.connected = breaks("connected", node.transport.connected)
            for name in ("ledger", "bootstrap", "announcing"):
                await shown(node, name)
            before = Counter(rounds)
            while any(rounds[name] < before[name] + 3 for name in before):
                await asyncio.sleep(0.005)
            broken = False
            for name in ("ledger", "bootstrap", "announcing"):
                await shown(node, name, False)
            kinds = Counter(e["event"] for e in node.events.recent(1000))
            assert kinds["upkeep_down"] == kinds["upkeep_up"] == 3  # told when it changes, not each round

    run(body())


def test_the_network_part_comes_back_and_what_it_has_is_found_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a = await w.node(bulk=True)
            made = make_artifact(tokens=30)
            w.give(a, made)
            start, tries = a.transport.start, 0

            async def fails(*arguments: Any) -> None:
                nonlocal tries
                tries += 1
                if tries < 3:
                    raise P2pDown("the port is taken")
                await start(*arguments)

            a.transport.start = fails
            await a.transport._fail("trio died")
            await shown(a, "p2p")
            assert not a.p2p
            await shown(a, "p2p", False)
            assert a.p2p and tries == 3
            b = await w.node(bulk=True)
            await fetch(b, Cid.parse(made.id))
            kinds = [e["event"] for e in a.events.recent(1000)]
            assert kinds.count("p2p_down") == kinds.count("p2p_up") == 1

    run(body())


def test_what_could_not_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvswap.net.bulk import BulkServer

    async def body() -> None:
        start, broken = BulkServer.start, True

        async def fails(self: BulkServer, *arguments: Any) -> None:
            if broken:
                raise P2pDown("cannot listen", cause="the port is taken")
            await start(self, *arguments)

        monkeypatch.setattr(BulkServer, "start", fails)
        async with world(tmp_path) as w:
            node = await w.node(bulk=True)
            await shown(node, "bulk")
            assert SERVICES[node].serving.bulk_record is None and node.p2p
            broken = False
            await shown(node, "bulk", False)
            assert SERVICES[node].serving.bulk_record is not None

    run(body())


def test_a_task_that_failed_once_is_not_degraded_for_ever(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()

            async def once(fails: bool) -> None:
                if fails:
                    raise OSError(28, "No space left on device")

            await asyncio.wait([node.background.spawn(once(True))])
            await asyncio.sleep(0)
            assert "No space" in node.problems["once"]
            await asyncio.wait([node.background.spawn(once(False))])
            await asyncio.sleep(0)
            assert "once" not in node.problems

    run(body())


# -- announcing ----------------------------------------------------------------------------------


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


async def announcing(w: World, clock: Clock, count: int, seconds_each: float) -> tuple[Any, Announcing, list[str]]:
    node = await w.node()
    for task in list(node.background.tasks):
        task.cancel()  # its own upkeep: the steps are taken here
    told: list[str] = []
    for number in range(count):
        w.give(node, make_artifact(tokens=9, seed=number, text=b"text %d" % number))

    async def announce(artifact: str, document: str | None) -> None:
        told.append(artifact)
        clock.now += seconds_each

    node.network.announce = announce  # type: ignore[method-assign]
    return node, Announcing(node), told


def test_all_artifacts_have_their_turn_and_it_rests_whoever_comes_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "_PER_ROUND", 4)

    async def body() -> None:
        clock = Clock()
        monkeypatch.setattr(keeping, "time", clock)
        async with world(tmp_path) as w:
            node, keeper, told = await announcing(w, clock, 10, 2.4)
            peers = ["first"]
            node.transport.connected = lambda: list(peers)
            began = clock.now
            for second in range(400):  # somebody new every second
                peers[:] = [f"peer {second}"]
                before = clock.now
                await keeper.step()
                clock.now = max(clock.now, before + 1.0)
            spoke = len(told) * 2.4
            assert spoke <= 0.6 * (clock.now - began)  # it rests as long as it speaks
            counts = Counter(told)
            assert len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 1

    run(body())


def test_when_all_was_told_to_all_it_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_PER_ROUND", 4)

    async def body() -> None:
        clock = Clock()
        monkeypatch.setattr(keeping, "time", clock)
        async with world(tmp_path) as w:
            node, keeper, told = await announcing(w, clock, 10, 2.4)
            peers = ["a", "b"]
            node.transport.connected = lambda: list(peers)
            for _ in range(200):
                await keeper.step()
                clock.now += 1.0
            assert sorted(told) == sorted(set(told)) and len(told) == 10
            peers[:] = ["a"]  # gone, and back: a link that flickers
            await keeper.step()
            clock.now += 30
            peers[:] = ["a", "b"]
            for _ in range(100):
                await keeper.step()
                clock.now += 1.0
            assert len(told) == 10
            clock.now += keeping._AGAIN_SECONDS  # a clock that jumps, or half a day
            for _ in range(200):
                await keeper.step()
                clock.now += 1.0
            assert Counter(told) == Counter(dict.fromkeys(told, 2))

    run(body())


def test_a_withdrawal_does_not_wait_for_a_network_that_answers_nothing(tmp_path: Path) -> None:
    from kvswap.exchange.withdraw import withdraw
    from tests.support import key

    async def body() -> None:
        async with world(tmp_path) as w:
            a, _ = await w.node(), await w.node()
            made = make_artifact(key(1000), tokens=9)
            w.give(a, made)

            async def never(key: bytes) -> None:
                await asyncio.Event().wait()

            a.transport.provide = never
            done = await asyncio.wait_for(withdraw(a, Cid.parse(made.id), "wrong"), 600)
            assert done["withdrawn"] == [made.id]

    run(body())


async def held_up(w: World, count: int) -> tuple[Any, list[Any], list[bytes], asyncio.Event]:
    """(A reader whose provider records wait until the event is set, artifacts that it may fetch, the records given.)"""
    made = [make_artifact(tokens=9, seed=n, text=b"text %d" % n) for n in range(count)]
    holder, node = await w.node(), await w.node()
    for one in made:
        w.give(holder, one)
    given: list[bytes] = []
    go = asyncio.Event()

    async def provide(key: bytes) -> None:
        await go.wait()
        given.append(key)

    node.transport.provide = provide
    return node, made, given, go


def test_what_waits_for_its_provider_records_holds_nothing_else(tmp_path: Path) -> None:
    """Giving records is slower than fetching: a task for each would be a line that grows for as long as that goes on.

    The kind of S6.
    """

    async def body() -> None:
        async with world(tmp_path) as w:
            node, made, given, go = await held_up(w, 24)
            for one in made:
                await fetch(node, Cid.parse(one.id))
            while any(not t.done() and "gossip" in repr(t) for t in node.background.tasks):
                await asyncio.sleep(0.005)
            assert len(node.background.tasks) < 16, node.background.tasks
            go.set()
            while len(set(given)) < 2 * len(made):
                await asyncio.sleep(0.005)

    run(body())


def test_what_is_gone_when_its_turn_comes_gets_no_record(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node, made, given, go = await held_up(w, 8)
            for _ in range(3):
                for one in made:
                    await fetch(node, Cid.parse(one.id))
                    if one is not made[-1]:
                        node.store.remove(one.id)
            go.set()
            last = Cid.parse(made[-1].id).digest
            while last not in given:
                await asyncio.sleep(0.005)
            held_up_first = Cid.parse(made[0].id).digest  # it was being given when it went
            assert set(given) - {last, held_up_first} <= {document_key(one.statement.reference) for one in made}
            assert len(given) <= 4

    run(body())


@pytest.mark.parametrize("dead", [2, 40])
def test_a_bootstrap_address_that_is_not_reached_holds_up_no_other(tmp_path: Path, dead: int) -> None:
    """They are dialled at once, so many at a time, and who has waited longest first."""

    async def body() -> None:
        async with world(tmp_path) as w:
            last = await w.node()
            silent = [f"/memory/{n}/p2p/{key(5000 + n).peer_id}" for n in range(dead)]
            there = f"/memory/x/p2p/{last.transport.peer}"  # type: ignore[union-attr]
            node = await w.node(bootstrap=(*silent, there, "/memory/no/peer"))
            transport, right = node.transport, node.transport.connect  # type: ignore[union-attr]
            hangs, under_way, most = asyncio.Event(), 0, 0

            async def connect(address: Any) -> None:
                nonlocal under_way, most
                if not address.addresses or address.addresses[0] == there:
                    return await right(address)
                under_way += 1
                most = max(most, under_way)
                try:
                    # More than may be dialled at once have to end before the last one has its turn.
                    await (hangs.wait() if dead < 16 else asyncio.sleep(0.01))
                    raise Unreachable("nobody is there")
                finally:
                    under_way -= 1

            transport.connect = connect  # type: ignore[method-assign, union-attr]
            for _ in range(2):  # and again, when it went away meanwhile
                await transport.disconnect(last.transport.peer)  # type: ignore[union-attr]
                while last.transport.peer not in transport.connected():  # type: ignore[union-attr]
                    await asyncio.sleep(0.005)
            await shown(node, "bootstrap /memory/no/peer")
            assert 0 < most <= 16
            hangs.set()
            await shown(node, f"bootstrap {silent[0]}")
            assert f"bootstrap {there}" not in node.problems

    run(body())
