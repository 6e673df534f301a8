"""Whatever strangers say, every table is bounded: a live node is flooded with messages of every kind, twice.

Each container that is reachable from the node and from libp2p is looked at between the two floods and after the
second.  One that goes on growing, and is none of the bounded tables, fails the test.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from kvswap.core.errors import KvswapError
from kvswap.core.ids import Cid
from kvswap.core.settings import Settings
from kvswap.cost import Calibration
from kvswap.exchange import Node
from kvswap.exchange.serving.service import Service
from kvswap.net import PeerAddress, messages
from kvswap.net.client import Session
from kvswap.net.libp2p.transport import Libp2pTransport
from kvswap.store import Store
from kvswap.trust import PolicyFile
from tests.support import NoModel, key, run
from tests.swarm import raw
from tests.swarm.containers import sizes

pytestmark = [pytest.mark.swarm, pytest.mark.faults]
PEERS = 8  # PeerIds of one flood
EACH = 16  # messages of a kind by each
SLACK = 12  # entries: what comes and goes by itself
# Bounded by what they are, with their caps.
BOUNDED = {
    r"\.dht\.routing_table\.buckets": 256 * 20 * 8,
    r"\.pubsub\.validation_cache\.": 2_048,
}


@asynccontextmanager
async def live(home: Path) -> AsyncIterator[Node]:
    """A node with the real transport."""
    settings = Settings(home=home, models=home, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False)
    store = Store.open(home / "store")
    publisher = key(1)
    node = Node(
        settings,
        store,
        Libp2pTransport(os.urandom(32), settings),
        NoModel(),
        publisher,
        PolicyFile(home / "trust.json", publisher.peer_id),
        Calibration(home / "calibration.json"),
        key(2),
    )
    service = Service(node)
    await service.start()
    try:
        yield node
    finally:
        await service.stop()
        store.close()


async def libp2p_flood(address: str, salt: bytes) -> None:
    """Many PeerIds, each with messages of every kind of libp2p's own protocols."""

    async def one(number: int) -> None:
        host = raw.bare_host()
        mine = salt + bytes([number])
        async with raw.running(host):
            try:
                peer = await raw.connect(host, address)
            except Exception:
                return
            names = [hashlib.sha256(mine + bytes([n])).digest() for n in range(EACH)]
            kinds: list[tuple[Any, list[bytes]]] = [
                (raw.DHT, [raw.add_provider(host, b"\x12\x20" + name, 40, 200) for name in names[:10]]),
                (raw.DHT, [raw.find_node(b"\x12\x20" + name) for name in names]),
                (raw.DHT, [raw.get_providers(b"\x12\x20" + name) for name in names]),
                (raw.PUSH, [raw.identify(host, 300, mine)]),
                (raw.GOSSIP, raw.gossip(EACH, mine)),
            ]
            for protocol, frames in kinds:
                await raw.tell(host, peer, protocol, *frames)
            for name in names:
                await raw.tell(host, peer, raw.DHT, raw.put_value(b"v" + name, os.urandom(1000)), wait=1.0)
                await raw.tell(host, peer, raw.PING, os.urandom(31), wait=0.5)
            with trio.move_on_after(2):
                for _ in range(40):  # and streams that say nothing
                    await host.get_network().new_stream(peer)
            await trio.sleep(0.2)
            with trio.move_on_after(2):
                await host.close()

    async with trio.open_nursery() as nursery:
        for number in range(PEERS):
            nursery.start_soon(one, number)


async def kvswap_flood(address: str, salt: bytes) -> None:
    """Requests of every kind, by peers with a PeerId each."""

    async def ignore(stream: Any) -> None:
        await stream.reset()

    async def one(number: int) -> None:
        transport = Libp2pTransport(os.urandom(32), Settings(home=Path("/"), models=Path("/"), mdns=False))
        await transport.start(ignore, lambda announcement: None)
        try:
            peer = address.rpartition("/p2p/")[2]
            await transport.connect(PeerAddress(peer, (address,)))
            me = messages.Provider(transport.peer, [f"/ip4/127.0.0.1/tcp/{n + 1024}" for n in range(8)])
            pipe = Session(await transport.open(peer))
            for n in range(EACH):
                name = hashlib.sha256(salt + bytes([number, n])).digest()
                artifact = str(Cid.of(name))
                for request in (
                    messages.Find("flood", artifact=artifact, bulk=True),
                    messages.Find("flood", document="sha256:" + name.hex()),
                    messages.Find("flood", chain=[name]),
                    messages.GetManifest(artifact),
                    messages.GetPrefixIndex(n),
                    messages.Join(artifact, me, True),
                    messages.Have(artifact),
                    messages.GetChunk(artifact),
                ):
                    try:
                        await pipe.ask(request, bytes)
                    except KvswapError:
                        pass
                announced = messages.Announce(artifact, "sha256:" + name.hex(), me)
                await transport.announce(messages.encode_announce(announced))
        finally:
            await transport.stop()

    await asyncio.gather(*(one(number) for number in range(4)))


async def flood(node: Node, salt: bytes) -> None:
    """All of it, and a look-up of the node's own in between."""
    address = node.transport.addresses()[0]  # type: ignore[union-attr]
    await asyncio.gather(
        asyncio.to_thread(trio.run, libp2p_flood, address, salt),
        kvswap_flood(address, salt),
    )
    assert node.p2p
    for peer in node.transport.connected():  # type: ignore[union-attr]
        await node.transport.disconnect(peer)  # type: ignore[union-attr]
    # Connections that have ended are cleared away, and streams that said nothing.
    while any(f.entries for f in node.transport.fillings() if f.name in ("connections", "streams")):  # type: ignore[union-attr]
        await asyncio.sleep(0.1)


def test_no_container_grows_with_what_strangers_say(tmp_path: Path) -> None:
    async def body() -> None:
        async with live(tmp_path) as node:
            await flood(node, b"warm")
            before, _ = sizes(node)
            await flood(node, b"first")
            await flood(node, b"second")
            after, tables = sizes(node)
            grown = {}
            for path, size in after.items():
                cap = next((most for name, most in BOUNDED.items() if re.search(name, path)), None)
                if size > (before.get(path, 0) + SLACK if cap is None else cap):
                    grown[path] = (before.get(path, 0), size)
            assert not grown, "\n".join(f"{path}: {a} -> {b}" for path, (a, b) in sorted(grown.items()))
            for path, table in tables.items():
                filling = table.filling()
                assert filling.entries <= filling.most_entries and filling.bytes <= filling.most_bytes, path
            names = {table.name for table in tables.values()}
            assert {"referrals", "provider records", "peer store"} <= names
            told = {filling.name for filling in node.tables.fillings()}
            assert names <= told, names - told

    run(body())
