"""A stranger that asks for too much, or for nothing, of a real daemon: others are served as before."""

from __future__ import annotations

import asyncio

import psutil
import pytest

from kvswap.core.errors import KvswapError, TokenRefused
from kvswap.core.ids import peer_of
from kvswap.core.limits import LIMITS
from kvswap.net import PeerAddress, Transport, messages
from kvswap.net.bulk import BulkClient, BulkTarget
from kvswap.net.client import Session, session
from tests.support import Daemon, Ingested, kvswap, run, until
from tests.swarm.bare import stranger
from tests.swarm.test_faults import Start, check_complete, fetch, made, nodes  # noqa: F401 - fixtures

pytestmark = [pytest.mark.swarm, pytest.mark.faults]
MEMORY = 300e6  # above idle


def rss(node: Daemon) -> int:
    assert node.process is not None
    return int(psutil.Process(node.process.pid).memory_info().rss)


@pytest.mark.parametrize("streams", [LIMITS.streams_per_peer, 2 * LIMITS.streams_per_peer])
def test_a_flood_of_requests_costs_bounded_memory_is_hung_up_on_and_keeps_nobody_else_waiting(
    nodes: Start,  # noqa: F811
    made: Ingested,  # noqa: F811
    streams: int,
) -> None:
    server = nodes("server", holds=True)
    reader = nodes("reader", to=[server])
    idle = rss(server)
    peer = peer_of(server.address)
    largest = max(made.manifest.chunks, key=lambda c: c.length)

    async def flood(transport: Transport) -> None:
        """Asks for chunks and bitmaps on many streams, reading nothing back, and comes again when cut off."""
        dialling = asyncio.Lock()

        async def one() -> None:
            while True:
                try:
                    async with dialling:  # one connection for all: as many at a time may end one another
                        await transport.connect(PeerAddress(peer, (server.address,)))
                    stream = await transport.open(peer)
                    while True:
                        for request in (messages.GetChunk(str(largest.id)), messages.Have(made.id)):
                            await stream.send(messages.encode_request(request), 5)
                except KvswapError:
                    await asyncio.sleep(0.05)

        await asyncio.gather(*(one() for _ in range(streams)))

    def told() -> list[str]:
        return [e["reason"] for e in server.client.events() if e["event"] == "peer_flooded"]

    async def body() -> None:
        async with stranger(server) as transport:
            flooding = asyncio.create_task(flood(transport))
            try:
                await asyncio.to_thread(until, told)
                assert rss(server) - idle < MEMORY
                done = await asyncio.to_thread(fetch, reader, made)
                assert done.returncode == 0, done.stderr
                assert rss(server) - idle < MEMORY
            finally:
                flooding.cancel()
                await asyncio.gather(flooding, return_exceptions=True)

    run(body())
    check_complete(reader, made)
    assert transport_is_up(server)


def transport_is_up(node: Daemon) -> bool:
    return bool(node.client.status()["p2p"])


def test_streams_that_say_nothing_cost_a_place_each_and_no_more(nodes: Start, made: Ingested) -> None:  # noqa: F811
    server = nodes("server", holds=True)
    reader = nodes("reader", to=[server])
    peer = peer_of(server.address)

    async def body() -> None:
        async with stranger(server) as transport:
            held, refused = [], 0
            for _ in range(3 * LIMITS.streams_per_peer):
                try:
                    held.append(await transport.open(peer))
                except KvswapError:
                    refused += 1
            done = await asyncio.to_thread(fetch, reader, made)
            assert done.returncode == 0, done.stderr
            for stream in held:
                try:
                    await stream.send(messages.encode_request(messages.Have(made.id)), 5)
                    await Session(stream).answer(messages.HaveReply, seconds=5)
                except KvswapError:
                    refused += 1
            assert refused >= 2 * LIMITS.streams_per_peer

    run(body())
    check_complete(reader, made)


def test_a_token_replayed_after_its_stream_has_ended_opens_nothing(nodes: Start, made: Ingested) -> None:  # noqa: F811
    server, other = nodes("server", holds=True), nodes("other", holds=True)
    chunk = made.manifest.chunks[0]

    async def body() -> None:
        client = BulkClient()
        async with stranger(server) as transport:
            peer = peer_of(server.address)
            me = messages.Provider(transport.peer, [])
            into = memoryview(bytearray(chunk.length))
            async with session(transport, peer) as pipe:
                reply = await pipe.ask(messages.Join(made.id, me, True), messages.JoinReply)
                assert reply.grant is not None
                record = reply.grant.record
                target = BulkTarget(peer, "127.0.0.1", record.port, record.certificate, reply.grant.token)
                await client.get(target, chunk.id, into)
                assert bytes(into) == made.chunks[chunk.id]
            with pytest.raises(TokenRefused):
                while True:  # the end of the stream reaches the server a moment later
                    await client.get(target, chunk.id, into)
                    await asyncio.sleep(0.05)
            # and it is of no use at another node
            await transport.connect(PeerAddress(peer_of(other.address), (other.address,)))
            async with session(transport, peer_of(other.address)) as pipe:
                reply = await pipe.ask(messages.Join(made.id, me, True), messages.JoinReply)
                assert reply.grant is not None
                record = reply.grant.record
                wrong = BulkTarget(record.peer, "127.0.0.1", record.port, record.certificate, target.token)
                with pytest.raises(TokenRefused):
                    await client.get(wrong, chunk.id, into)
        await client.close()

    run(body())


def test_a_blocked_peer_gets_nothing_and_is_asked_nothing(nodes: Start, made: Ingested) -> None:  # noqa: F811
    server = nodes("server", holds=True)
    reader = nodes("reader", to=[server])
    assert kvswap(server.home, "block", reader.ready["peer"]).returncode == 0
    assert fetch(reader, made).returncode in (5, 9)
    assert server.client.status()["bytes_out"] == 0
    server.stop()
    server.flags = ["--bootstrap", reader.address]
    server.start()  # it is still blocked after a restart
    (row,) = [p for p in server.client.peers() if p["peer"] == reader.ready["peer"]]
    assert row["blocked"]
    assert kvswap(server.home, "unblock", reader.ready["peer"]).returncode == 0
    assert kvswap(reader.home, "unblock", server.ready["peer"]).returncode == 0  # its failures are forgiven
    done = fetch(reader, made)
    assert done.returncode == 0, done.stderr
    check_complete(reader, made)
    (row,) = [p for p in server.client.peers() if p["peer"] == reader.ready["peer"]]
    assert row["bytes_out"] > 0 and row["ratio"] is None
    (row,) = [p for p in reader.client.peers() if p["peer"] == server.ready["peer"]]
    assert row["bytes_in"] > 0 and row["ratio"] == 0.0 and row["rate"]
    assert kvswap(reader.home, "block", "not a peer").returncode == 2
