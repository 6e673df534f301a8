"""Bare peers on the in-memory network: each answers as its test says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.net import PeerAddress, messages
from kvswap.net.memory import MemoryNetwork, MemoryTransport
from kvswap.net.server import RemoteCaller, Server
from tests.support import key

Answering = Callable[[messages.Request], Awaitable[Any]]


class Peer:
    """A peer that answers requests with what `answering` returns, and counts them."""

    def __init__(self, network: MemoryNetwork, number: int, answering: Answering) -> None:
        self.id = str(key(number).peer_id)
        self.transport = MemoryTransport(network, self.id)
        self.heard: list[messages.Request] = []
        self._answering = answering

    async def start(self, *others: Any) -> Peer:
        """Serve, connected to these nodes."""

        async def answer(caller: RemoteCaller, request: messages.Request) -> Any:
            self.heard.append(request)
            return await self._answering(request)

        await self.transport.start(Server(answer), lambda announcement: None)
        for other in others:
            await self.transport.connect(PeerAddress(other.transport.peer))
        return self


async def never() -> Any:
    """Answer in an hour: longer than any test."""
    await asyncio.sleep(3600)


async def has_nothing(request: messages.Request) -> Any:
    """Answer every look-up with nothing."""
    if isinstance(request, messages.Find):
        return messages.FindReply("test", str(key(7).peer_id), [], [])
    if isinstance(request, messages.GetPrefixIndex):
        return messages.PrefixIndexReply(1, b"")
    raise NotFound("it is not here")


def made_up(number: int) -> str:
    """The id of an artifact that nobody has."""
    return str(Cid.of(b"made up %d" % number))


def found(number: int, **changes: Any) -> messages.Found:
    """An offer of an artifact that nobody has."""
    fields: dict[str, Any] = {
        "artifact": made_up(number),
        "model": hashlib.sha256(b"model").digest(),
        "dtype": "bfloat16",
        "tokens": 1000,
        "wire_bytes": 10_000,
        "publisher": str(key(7).peer_id),
        "complete": True,
    }
    return messages.Found(**(fields | changes))


def promising(offers: list[messages.Found], providers: list[messages.Provider] | None = None) -> Answering:
    """Offer all this to everybody, and never give a manifest."""

    async def answering(request: messages.Request) -> Any:
        if isinstance(request, messages.Find):
            return messages.FindReply("test", str(key(7).peer_id), offers, providers or [])
        if isinstance(request, messages.GetManifest):
            await never()
        return await has_nothing(request)

    return answering
