"""The rule of `net.dialling` at real connections: who may make a node connect, and where, over IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from kvswap.core.errors import KvswapError
from kvswap.core.settings import Settings
from kvswap.net import PeerAddress
from kvswap.net.dialling import JUDGED
from kvswap.net.libp2p.transport import Libp2pTransport
from kvswap.trust import Key
from tests.support import Daemon, key, kvswap, make_artifact, run, stock, until


@contextmanager
def port(host: str = "127.0.0.1") -> Iterator[tuple[str, list[bytes]]]:
    """A service of this machine that counts who connects: its multiaddr, and one entry a connection."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    seen: list[bytes] = []
    with socket.create_server((host, 0), family=family) as server:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(0.2)
                    try:
                        seen.append(connection.recv(64))
                    except OSError:
                        seen.append(b"")

        threading.Thread(target=accept, daemon=True).start()
        yield f"/ip{6 if ':' in host else 4}/{host}/tcp/{server.getsockname()[1]}", seen


@asynccontextmanager
async def node(listen: str = "/ip4/127.0.0.1/tcp/0") -> AsyncIterator[Libp2pTransport]:
    settings = Settings(home=Path("/"), models=Path("/"), mdns=False, listen=(listen,))
    made = Libp2pTransport(os.urandom(32), settings)
    await made.start(lambda stream: asyncio.sleep(0), lambda announcement: None)
    try:
        yield made
    finally:
        await made.stop()


def stranger() -> str:
    return str(Key.from_seed(os.urandom(32)).peer_id)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_stranger_elsewhere_opens_no_connection_to_this_machine(host: str) -> None:
    async def body() -> None:
        async with node() as a:
            with port(host) as (address, seen):
                for sender in (None, "8.8.8.8", "10.0.0.1", "169.254.1.1", "2a00:1450::1"):
                    with pytest.raises(KvswapError):
                        await a.connect(PeerAddress(stranger(), (address,), sender))
                assert seen == []
                for who in ("127.0.0.1", "::1", JUDGED):
                    before = len(seen)
                    with pytest.raises(KvswapError):
                        await a.connect(PeerAddress(stranger(), (address,), who))
                    assert len(seen) == before + 1  # and one try, no more

    run(body())


def test_a_circuit_is_judged_by_its_relay() -> None:
    async def body() -> None:
        async with node() as a:
            with port() as (address, seen):
                circuit = f"{address}/p2p/{stranger()}/p2p-circuit"
                for sender in (None, "8.8.8.8", "10.0.0.1"):
                    with pytest.raises(KvswapError):
                        await a.connect(PeerAddress(stranger(), (circuit,), sender))
                assert seen == []

    run(body())


def test_what_libp2p_dials_by_itself_is_held_to_the_rule() -> None:
    """The DHT, identify and hole punching write addresses into the peer store, and dial them."""
    import multiaddr
    import trio
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import PeerInfo

    async def body() -> None:
        async with node() as a:
            with port() as (address, seen):
                host = a._host
                assert host is not None
                who = ID.from_string(stranger())

                async def by_itself() -> None:
                    with trio.move_on_after(60):
                        try:
                            await host.host.connect(PeerInfo(who, [multiaddr.Multiaddr(address)]))
                        except Exception:
                            pass

                await a._bridge.call(by_itself, seconds=600)
                assert seen == []
                with pytest.raises(KvswapError):
                    await a.connect(PeerAddress(str(who)))  # from the peer store, told by nobody who is here
                assert seen == []

    run(body())


def test_nodes_on_ipv6_are_direct() -> None:
    async def body() -> None:
        async with node("/ip6/::1/tcp/0") as a, node("/ip6/::1/tcp/0") as b:
            await a.connect(PeerAddress(b.peer, tuple(b.addresses())))
            while a.peer not in b.connected():
                await asyncio.sleep(0.02)
            for one, other in ((a, b), (b, a)):
                assert one.host_of(other.peer) == "::1"
                assert not one.relayed(other.peer) and one.vicinity() == "::1"
            assert not a.relayed(stranger()) and a.host_of(stranger()) is None

    run(body())


@pytest.mark.swarm
@pytest.mark.faults
def test_a_fetch_over_ipv6_goes_over_https(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    made = make_artifact()
    stock(tmp_path / "a", made)
    ipv6 = ("--listen", "/ip6/::1/tcp/0")
    a = daemon("a", *ipv6, KVSWAP_MODELS=str(tmp_path / "none"))
    b = daemon("b", *ipv6, "--bootstrap", a.address, KVSWAP_MODELS=str(tmp_path / "none"))
    b.client.trust_add(str(key().peer_id))
    until(lambda: b.client.status()["peers"] > 0, what="B to reach A")
    done = kvswap(b.home, "fetch", made.id, "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert '"https"' in done.stdout, done.stdout
    for one in (a, b):
        assert [p["relayed"] for p in one.client.peers() if p["connected"]] == [False]
