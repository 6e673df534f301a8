"""One suite for every transport.  The in-memory one is the reference; libp2p runs over real sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import NetworkTimeout, PeerError
from kvswap.core.settings import Settings
from kvswap.net import Announcement, PeerAddress, Stream, StreamClosed, Transport
from kvswap.net.memory import MemoryNetwork, MemoryTransport
from tests.support import key, run

Handler = Callable[[Stream], Awaitable[None]]


async def echo(stream: Stream) -> None:
    """Answers every frame with itself until the other side ends."""
    try:
        while True:
            await stream.send(await stream.receive(8 << 20, 30), 30)
    except StreamClosed:
        await stream.close()


class Network:
    """Makes started nodes of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.memory = MemoryNetwork()
        self.nodes: list[Transport] = []
        self.heard: dict[str, list[Announcement]] = {}

    async def node(self, handler: Handler = echo) -> Transport:
        made: Transport
        if self.kind == "memory":
            made = MemoryTransport(self.memory, str(key(100 + len(self.nodes)).peer_id))
        else:
            from kvswap.net.libp2p.transport import Libp2pTransport

            made = Libp2pTransport(os.urandom(32), Settings(home=Path("/"), models=Path("/"), mdns=False))
        heard: list[Announcement] = []
        await made.start(handler, heard.append)
        self.heard[made.peer] = heard
        self.nodes.append(made)
        return made


@asynccontextmanager
async def network(kind: str) -> AsyncIterator[Network]:
    made = Network(kind)
    try:
        yield made
    finally:
        for node in made.nodes:
            await node.stop()


async def link(a: Transport, b: Transport) -> None:
    await a.connect(PeerAddress(b.peer, tuple(b.addresses())))


KINDS = pytest.mark.parametrize("kind", ["memory", "libp2p"])


@KINDS
def test_frames_of_all_sizes_arrive_whole_and_in_order(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b = await net.node(), await net.node()
            await link(a, b)
            assert b.peer in a.connected()
            stream = await a.open(b.peer)
            assert stream.peer == b.peer
            for size in (0, 1, 65_535, 65_536, 3_000_000):
                frame = os.urandom(size)
                await stream.send(frame, 30)
                assert await stream.receive(8 << 20, 30) == frame
            for number in range(12):  # several ahead
                await stream.send(b"%d" % number, 10)
            assert [await stream.receive(100, 10) for _ in range(12)] == [b"%d" % n for n in range(12)]
            await stream.close()

    run(body())


@KINDS
def test_an_exchange_is_a_frame_and_the_next_one_that_comes(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b = await net.node(), await net.node()
            await link(a, b)
            stream = await a.open(b.peer)
            for size in (0, 5, 65_537, 400_000):
                frame = os.urandom(size)
                assert await stream.exchange(frame, 1 << 20, 30) == frame
            await stream.send(b"ahead", 10)
            assert await stream.exchange(b"behind", 100, 10) == b"ahead"
            assert await stream.receive(100, 10) == b"behind"
            with pytest.raises(PeerError):
                await stream.exchange(b"x" * 101, 100, 10)
            await stream.reset()

    run(body())


@KINDS
def test_the_other_side_knows_who_asks(kind: str) -> None:
    async def body() -> None:
        async def tell(stream: Stream) -> None:
            await stream.send(stream.peer.encode(), 10)

        async with network(kind) as net:
            a, b = await net.node(), await net.node(tell)
            await link(a, b)
            stream = await a.open(b.peer)
            assert await stream.receive(100, 10) == a.peer.encode()

    run(body())


@KINDS
def test_hanging_up_ends_the_connection_and_another_may_follow(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b = await net.node(), await net.node()
            await link(a, b)
            await b.disconnect(a.peer)
            await b.disconnect(a.peer)  # idempotent
            while b.peer in a.connected() or a.peer in b.connected():
                await asyncio.sleep(0.02)
            await link(a, b)
            assert b.peer in a.connected()

    run(body())


@KINDS
def test_a_frame_over_the_limit_is_refused(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b = await net.node(), await net.node()
            await link(a, b)
            stream = await a.open(b.peer)
            await stream.send(b"x" * 1000, 10)
            with pytest.raises(PeerError):
                await stream.receive(999, 10)
            await stream.reset()

    run(body())


@KINDS
def test_silence_is_a_timeout_and_the_transport_lives_on(kind: str) -> None:
    async def body() -> None:
        async def silent(stream: Stream) -> None:
            await asyncio.sleep(3600)

        async with network(kind) as net:
            a, b = await net.node(), await net.node(silent)
            await link(a, b)
            stream = await a.open(b.peer)
            with pytest.raises(NetworkTimeout):
                await stream.receive(100, 0.2)
            await stream.reset()
            second = await a.open(b.peer)
            waiting = asyncio.create_task(second.receive(100, 3600))
            await asyncio.sleep(0.05)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await second.reset()
            assert a.alive

    run(body())


@KINDS
def test_an_ended_stream_is_not_an_empty_frame(kind: str) -> None:
    async def body() -> None:
        async def one(stream: Stream) -> None:
            await stream.send(b"last", 10)
            await stream.close()

        async def broken(stream: Stream) -> None:
            await stream.reset()

        async with network(kind) as net:
            a, b, c = await net.node(), await net.node(one), await net.node(broken)
            await link(a, b)
            await link(a, c)
            stream = await a.open(b.peer)
            assert await stream.receive(100, 10) == b"last"
            with pytest.raises(StreamClosed):
                await stream.receive(100, 10)
            with pytest.raises(PeerError):
                cut = await a.open(c.peer)
                await cut.receive(100, 10)

    run(body())


@KINDS
def test_unreachable_peers_are_errors_within_the_dial_time(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a = await net.node()
            nobody = str(key(9).peer_id)
            with pytest.raises(PeerError):
                await a.connect(PeerAddress(nobody, (f"/ip4/127.0.0.1/tcp/9/p2p/{nobody}",)))
            with pytest.raises(PeerError):
                await a.open(nobody)

    run(body())


@KINDS
def test_an_address_of_another_peer_is_not_taken_for_this_one(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b = await net.node(), await net.node()
            wanted = str(key(9).peer_id)
            with pytest.raises(PeerError):
                await a.connect(PeerAddress(wanted, tuple(x.split("/p2p/")[0] for x in b.addresses())))
            assert wanted not in a.connected()

    run(body())


@KINDS
def test_providers_are_found_through_a_third(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b, c = await net.node(), await net.node(), await net.node()
            await link(a, c)
            await link(b, c)
            secret = os.urandom(32)
            found: list[PeerAddress] = []
            while not found:  # routing tables fill once a second
                await a.provide(secret)
                found = await b.find_providers(secret)
                await asyncio.sleep(0 if found else 0.1)
            assert [f.peer for f in found] == [a.peer]
            await b.connect(found[0])
            assert a.peer in b.connected()
            assert await b.find_providers(os.urandom(32)) == []

    run(body())


@KINDS
def test_announcements_reach_peers_of_peers_with_their_origin(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b, c = await net.node(), await net.node(), await net.node()
            await link(a, c)
            await link(b, c)
            attempt = 0
            while not net.heard[b.peer]:  # the mesh forms with the first heartbeats
                if attempt % 10 == 0:
                    await a.announce(b"news %d" % attempt)
                attempt += 1
                await asyncio.sleep(0.1)
            assert {x.origin for x in net.heard[b.peer]} == {a.peer}
            assert net.heard[b.peer][0].data.startswith(b"news")

    run(body())


@KINDS
def test_stopping_is_quick_final_and_repeatable(kind: str) -> None:
    async def body() -> None:
        async with network(kind) as net:
            a, b = await net.node(), await net.node()
            await link(a, b)
            stream = await a.open(b.peer)
            await b.stop()
            await b.stop()
            assert not b.alive
            with pytest.raises(PeerError):
                await stream.send(b"x", 5)
                await stream.receive(10, 5)

    run(body())


def test_the_reference_and_the_real_one_have_the_same_methods() -> None:
    from kvswap.net.libp2p.transport import Libp2pTransport

    def methods(kind: Any) -> set[str]:
        return {n for n in dir(kind) if not n.startswith("_")}

    assert methods(Libp2pTransport) == methods(MemoryTransport) == methods(Transport)


def test_who_is_cancelled_when_a_frame_was_just_taken_is_cancelled() -> None:
    """And does not go on to wait for an answer."""

    async def body() -> None:
        network = MemoryNetwork()
        one, other = (MemoryTransport(network, str(key(n).peer_id)) for n in (1, 2))

        async def silent(stream: Any) -> None:
            await asyncio.sleep(3600)

        for node in (one, other):
            await node.start(silent, lambda announcement: None)
        stream = await one.open(other.peer)
        for turns in range(6):
            asking = asyncio.create_task(stream.exchange(b"x", 10, 3600))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking], timeout=600)
            assert asking.cancelled(), turns
        await one.stop()
        await other.stop()

    run(body())


def test_a_peer_whose_connection_is_being_closed_is_dialled_anew() -> None:
    """Saying goodbye may take long, and until then py-libp2p lists a connection on which it opens no stream."""
    import trio

    async def body() -> None:
        async with network("libp2p") as net:
            a, b = await net.node(), await net.node()
            await link(a, b)
            host, bridge = a._host, a._bridge  # type: ignore[attr-defined]

            async def close_for_ever() -> None:
                (connection,) = next(iter(host.host.get_network().connections.values()))
                connection.muxed_conn.close = trio.sleep_forever
                with trio.move_on_after(0.1):
                    await connection.close()

            await bridge.call(close_for_ever, seconds=600)
            assert b.peer not in a.connected()
            stream = await a.open(b.peer)
            assert await stream.exchange(b"hello", 100, 600) == b"hello"

    run(body())
