"""Regression: py-libp2p's defaults offer plaintext, with which anyone can claim to be any peer."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import trio

from kvswap.core.settings import Settings
from kvswap.net.libp2p.transport import Libp2pTransport
from tests.support import run


def test_only_noise_is_offered() -> None:
    async def body() -> None:
        node = Libp2pTransport(os.urandom(32), Settings(home=Path("/"), models=Path("/"), mdns=False))
        await node.start(lambda stream: asyncio.sleep(0), lambda announcement: None)
        try:
            port = int(node.addresses()[0].split("/tcp/")[1].split("/")[0])
            offered = await asyncio.to_thread(trio.run, _offered, port)
        finally:
            await node.stop()
        assert offered["/noise"] == "/noise"
        for protocol in ("/plaintext/2.0.0", "/plaintext/1.0.0", "/insecure/1.0.0", "/tls/1.0.0", "/secio/1.0.0"):
            assert offered[protocol] == "na", protocol

    run(body())


async def _offered(port: int) -> dict[str, str]:
    """Speak multistream-select by hand and ask for each security protocol."""
    out = {}
    protocols = ("/noise", "/plaintext/2.0.0", "/plaintext/1.0.0", "/insecure/1.0.0", "/tls/1.0.0", "/secio/1.0.0")
    for protocol in protocols:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            for line in ("/multistream/1.0.0\n", protocol + "\n"):
                await stream.send_all(bytes([len(line)]) + line.encode())
            data = b""
            with trio.move_on_after(600):
                while data.count(b"\n") < 2:
                    more = await stream.receive_some(4096)
                    if not more:
                        break
                    data += more
            lines = [part for part in data.split(b"\n") if part]
            out[protocol] = lines[1][1:].decode() if len(lines) > 1 else "closed"
    return out


def test_a_host_that_speaks_only_plaintext_cannot_connect() -> None:
    """The spoofing itself: a plaintext host that claims the victim's key."""
    import multiaddr
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.peerinfo import info_from_p2p_addr
    from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport

    async def attack(address: str) -> bool:
        keys = create_new_key_pair(os.urandom(32))
        host = new_host(key_pair=keys, sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)})
        async with host.run(listen_addrs=[multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
            try:
                with trio.fail_after(60):
                    await host.connect(info_from_p2p_addr(multiaddr.Multiaddr(address)))
            except Exception:
                return False
            return True

    async def body() -> None:
        node = Libp2pTransport(os.urandom(32), Settings(home=Path("/"), models=Path("/"), mdns=False))
        await node.start(lambda stream: asyncio.sleep(0), lambda announcement: None)
        try:
            assert not await asyncio.to_thread(trio.run, attack, node.addresses()[0])
            assert node.connected() == []
        finally:
            await node.stop()

    run(body())
