"""A node that takes no part in the network: it asks and tells nobody, and what needs somebody says so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvswap.core.errors import P2pDown
from kvswap.net import PeerAddress, Transport
from kvswap.net.offline import Offline
from tests.support import key, run

PEER = str(key(7).peer_id)


def test_it_has_all_that_a_transport_has() -> None:
    for name in (n for n in dir(Transport) if not n.startswith("_")):
        assert hasattr(Offline(), name), name


@pytest.mark.parametrize(
    "needs",
    [
        lambda t: t.connect(PeerAddress(PEER, ("/ip4/127.0.0.1/tcp/1",))),
        lambda t: t.open(PEER),
        lambda t: t.start(lambda stream: asyncio.sleep(0), lambda announcement: None),
    ],
    ids=["connect", "open", "start"],
)
def test_what_needs_somebody_is_told_with_what_helps(needs: Any) -> None:
    with pytest.raises(P2pDown) as told:
        run(needs(Offline()))
    assert "no part in the network" in told.value.message and told.value.hint == "kvswap status"


def test_it_is_known_to_nobody_and_knows_nobody() -> None:
    transport = Offline()
    assert not transport.alive and transport.peer == "" and transport.failed == ""
    assert transport.addresses() == transport.connected() == transport.fillings() == []
    assert transport.connected_since(PEER) is None and transport.host_of(PEER) is None
    assert transport.vicinity() is None and not transport.relayed(PEER)


def test_telling_and_looking_up_come_to_nothing_and_fail_nothing() -> None:
    async def body() -> None:
        transport = Offline()
        transport.favour({PEER})
        await transport.provide(bytes(32))
        await transport.announce(b"news")
        assert await transport.find_providers(bytes(32)) == []
        await transport.disconnect(PEER)
        await transport.stop()
        await transport.stop()

    run(body())
