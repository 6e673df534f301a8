"""A bare peer in the test's own process: it can ask a daemon for anything, and do anything to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kvswap.core.ids import peer_of
from kvswap.core.settings import Settings
from kvswap.net import PeerAddress, Stream, Transport
from kvswap.net.libp2p.transport import Libp2pTransport
from tests.support import Daemon


@asynccontextmanager
async def stranger(victim: Daemon) -> AsyncIterator[Transport]:
    """Connected to the victim."""

    async def ignore(stream: Stream) -> None:
        await stream.reset()

    transport = Libp2pTransport(os.urandom(32), Settings(home=Path("/"), models=Path("/"), mdns=False))
    await transport.start(ignore, lambda announcement: None)
    try:
        await transport.connect(PeerAddress(peer_of(victim.address), (victim.address,)))
        yield transport
    finally:
        await transport.stop()
