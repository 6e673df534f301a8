"""Places when they are short: many identities that say nothing keep nobody out."""

from __future__ import annotations

import asyncio
from typing import Any

import trio
from trio.testing import MockClock

from kvswap.core.limits import LIMITS
from kvswap.net import messages
from kvswap.net.client import Session
from kvswap.net.libp2p.connection_limits import Connections, ConnectionSlots, _ConnectionSlot
from kvswap.net.memory import MemoryNetwork, MemoryTransport
from kvswap.net.server import Server
from tests.support import run


async def _nothing() -> None:
    pass


def test_idle_streams_of_many_identities_keep_no_reader_out() -> None:
    async def body() -> None:
        network = MemoryNetwork()

        async def answer(caller: Any, request: Any) -> Any:
            return messages.HaveReply(b"", [])

        async def ignore(stream: Any) -> None:
            pass

        async def peer(name: str, handler: Any) -> MemoryTransport:
            transport = MemoryTransport(network, name)
            await transport.start(handler, lambda announcement: None)
            return transport

        await peer("server", Server(answer))
        for number in range(LIMITS.streams // LIMITS.streams_per_peer):
            sends_invalid_data = await peer(f"liar {number}", ignore)
            for _ in range(LIMITS.streams_per_peer):
                await sends_invalid_data.open("server")
        await asyncio.sleep(0)
        honest = await peer("honest", ignore)
        for _ in range(8):
            pipe = Session(await honest.open("server"))
            assert await pipe.ask(messages.Have("anything"), messages.HaveReply) == messages.HaveReply(b"", [])

    run(body())


def test_connections_come_in_no_faster_than_their_handshakes_are_paid_for() -> None:
    """However many identities one machine makes; those of other machines come in meanwhile."""
    upgraded: list[str] = []

    class Swarm:
        """One that upgrades nobody."""

        async def upgrade_inbound_raw_conn(self, raw: Any, listener: Any) -> Any:
            upgraded.append(raw.stream.host)
            raise ConnectionError

    class Raw:
        def __init__(self, host: str) -> None:
            self.host, self.closed = host, False

        def get_remote_address(self) -> tuple[str, int]:
            return self.host, 4001

        async def close(self) -> None:
            self.closed = True

    async def body() -> None:
        connections = Connections(Swarm(), lambda peer: False)
        flood = [Raw("1.1.1.1") for _ in range(1_000)]
        for raw in flood:
            await connections.handle(raw, None)
        assert all(raw.closed for raw in flood)
        assert len(upgraded) == LIMITS.arrivals_at_once
        await connections.handle(Raw("2.2.2.2"), None)
        assert upgraded[-1] == "2.2.2.2"
        await trio.sleep(1)
        for raw in flood:
            await connections.handle(raw, None)
        assert upgraded.count("1.1.1.1") == LIMITS.arrivals_at_once + LIMITS.arrivals_per_second
        for number in range(1_000):
            await connections.handle(Raw(f"3.3.{number >> 8}.{number & 255}"), None)
        assert len(upgraded) <= LIMITS.all_arrivals_at_once + LIMITS.all_arrivals_per_second

    trio.run(body, clock=MockClock(autojump_threshold=0))


def test_who_comes_gets_a_place_of_the_host_that_holds_most() -> None:
    places = ConnectionSlots("test", 8, 2, 7, lambda peer: peer == "friend")
    for number in range(7):
        assert places.take(_ConnectionSlot(f"liar {number}", "1.1.1.1", _nothing)) == (True, None)
    assert not places.take(_ConnectionSlot("liar 8", "1.1.1.1", _nothing))[0]  # its host's share
    assert places.take(_ConnectionSlot("friend", "1.1.1.1", _nothing)) == (
        True,
        None,
    )  # who delivered is not counted in it
    taken, victim = places.take(_ConnectionSlot("honest", "2.2.2.2", _nothing))
    assert taken and victim is not None and victim.peer == "liar 0"
    assert places.filling().entries == 8


def test_places_of_who_delivered_are_nobody_elses() -> None:
    places = ConnectionSlots("test", 4, 4, 4, lambda peer: peer == "friend")
    for _ in range(4):
        assert places.take(_ConnectionSlot("friend", "1.1.1.1", _nothing))[0]
    assert not places.take(_ConnectionSlot("stranger", "2.2.2.2", _nothing))[0]
