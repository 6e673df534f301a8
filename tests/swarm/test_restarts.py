"""A peer that is killed and comes back, again and again: nothing of its former connections stays.

Counted are tasks by kind, threads and descriptors, before anybody was met and after the last one is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import trio

from kvswap.core.errors import KvswapError
from kvswap.core.settings import Settings
from kvswap.net import PeerAddress, Stream
from kvswap.net.libp2p.transport import Libp2pTransport
from tests.support import run
from tests.swarm import tasks

pytestmark = [pytest.mark.swarm, pytest.mark.faults]
RESTARTS = 12
_SEED = b"partner".ljust(32, b".")


def _made(seed: bytes, port: int = 0) -> Libp2pTransport:
    listen = (f"/ip4/127.0.0.1/tcp/{port}",)
    return Libp2pTransport(seed, Settings(home=Path("/"), models=Path("/"), mdns=False, listen=listen))


async def _hold(stream: Stream) -> None:
    """Answer once, and leave the stream open."""
    await stream.send(await stream.receive(1000, 30), 30)
    await asyncio.sleep(3600)


def _partner(port: int, peer: str, addresses: tuple[str, ...], up: Connection) -> None:
    """Run until killed, in a process of its own."""

    async def body() -> None:
        transport = _made(_SEED, port)
        await transport.start(_hold, lambda announcement: None)
        up.send(transport.addresses())
        with contextlib.suppress(KvswapError):
            await transport.connect(PeerAddress(peer, addresses))
        await asyncio.sleep(3600)

    asyncio.run(body())


async def _until(condition: Callable[[], bool], what: str) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(600):
            while not condition():
                await asyncio.sleep(0.05)
    assert condition(), what


async def _trio_tasks(transport: Libp2pTransport) -> Counter[str]:
    async def count() -> Counter[str]:
        return tasks.of_trio()

    return await transport._bridge.call(count, seconds=600.0)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_of_the_connections_of_a_peer_that_was_killed() -> None:
    """It dials us while we dial it, as two nodes that know each other do."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kvswap.net.libp2p.transport", "tests.swarm.test_restarts"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    async def once(node: Libp2pTransport, peer: str) -> None:
        here, there = context.Pipe()
        process = context.Process(target=_partner, args=(port, node.peer, tuple(node.addresses()), there), daemon=True)
        process.start()
        there.close()
        try:
            assert await asyncio.to_thread(here.poll, 60), "the partner did not start"
            with contextlib.suppress(KvswapError):
                await node.connect(PeerAddress(peer, tuple(here.recv())))
            await _until(lambda: peer in node.connected(), "the partner is not connected")
            stream = await node.open(peer)
            assert await stream.exchange(b"still there?", 1000, 30) == b"still there?"
            await node.announce(b"hello")
        finally:
            process.kill()
            await asyncio.to_thread(process.join)
            process.close()
            here.close()
        await _until(lambda: peer not in node.connected(), "the killed partner is still connected")

    async def body() -> None:
        node = _made(os.urandom(32))
        await node.start(_hold, lambda announcement: None)
        peer = _made(_SEED).peer
        try:
            before = await _trio_tasks(node)
            await once(node, peer)
            mine, threads, descriptors = len(asyncio.all_tasks()), threading.active_count(), _descriptors()
            for _ in range(RESTARTS):
                await once(node, peer)
            left = await _trio_tasks(node) - before
            for _ in range(600):  # what ends by itself takes a moment
                if not left:
                    break
                await asyncio.sleep(1.0)
                left = await _trio_tasks(node) - before
            assert not left, f"left of {RESTARTS + 1} connections: {left}"
            await _until(lambda: len(asyncio.all_tasks()) <= mine, "tasks of asyncio are left")
            await _until(lambda: _descriptors() <= descriptors, "descriptors are left")
            assert threading.active_count() <= threads + 4  # those of pools, made when they are first needed
        finally:
            await node.stop()

    run(body())


def test_two_connections_at_once_make_one_writer() -> None:
    """py-libp2p would forget the first one's queue, whose writer then waits for ever."""

    async def body() -> None:
        a, b = _made(os.urandom(32)), _made(os.urandom(32))
        await a.start(_hold, lambda announcement: None)
        await b.start(_hold, lambda announcement: None)
        try:
            await a.connect(PeerAddress(b.peer, tuple(b.addresses())))
            host = a._host
            assert host is not None
            gossip = host.pubsub
            who = next(iter(host.host.get_connected_peers()))
            await _until(lambda: who in gossip.peers, "gossip did not begin")

            async def again() -> None:
                gossip._handle_dead_peer(who)
                async with trio.open_nursery() as nursery:
                    for _ in range(2):
                        nursery.start_soon(gossip._handle_new_peer, who)

            def writers(found: Counter[str]) -> int:
                return sum(n for name, n in found.items() if "RpcQueue.pop" in name)

            await a._bridge.call(again, seconds=600.0)
            await _until(lambda: who in gossip.peers, "gossip did not begin again")
            while writers(await _trio_tasks(a)) != 1:  # the writer of before ends when its queue is closed
                await asyncio.sleep(0.05)
        finally:
            await a.stop()
            await b.stop()

    run(body())
