"""Asking a peer: one stream, requests sent ahead, answers in order."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from kvswap.core.limits import LIMITS
from kvswap.net import messages
from kvswap.net.transport import Stream, Transport

T = TypeVar("T")


class Session:
    """A stream to one peer.  Not for concurrent use."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.peer = stream.peer

    async def send(self, request: messages.Request) -> None:
        """Send without waiting for the answer; at most `LIMITS.pipelined_requests` may be open."""
        await self.stream.send(messages.encode_request(request), LIMITS.request_seconds)

    async def answer(
        self, kind: type[T], *, limit: int = LIMITS.message_bytes, seconds: float = LIMITS.request_seconds
    ) -> T:
        """The answer to the oldest open request.  Raises `NotFound` or `PeerError`."""
        return messages.decode_response(await self.stream.receive(limit, seconds), kind)

    async def ask(self, request: messages.Request, kind: type[T]) -> T:
        await self.send(request)
        return await self.answer(kind)

    async def chunk(self, cid: str, length: int) -> bytes:
        """One chunk, whose signed wire length is `length`."""
        await self.send(messages.GetChunk(cid))
        return await self.answer(bytes, limit=length + 256, seconds=LIMITS.chunk_seconds)


@asynccontextmanager
async def session(transport: Transport, peer: str) -> AsyncIterator[Session]:
    """A session that is closed at the end, and reset when anything went wrong."""
    stream = await transport.open(peer)
    try:
        yield Session(stream)
    except BaseException:
        await stream.reset()
        raise
    await stream.close()


def bitmap(flags: Sequence[bool]) -> bytes:
    """Bit i of byte i // 8 (least significant first) is flag i."""
    out = bytearray(-(-len(flags) // 8))
    for index, flag in enumerate(flags):
        out[index >> 3] |= flag << (index & 7)
    return bytes(out)


def from_bitmap(data: bytes, count: int) -> list[bool]:
    """Inverse of `bitmap`; missing bytes count as absent."""
    return [bool(data[i >> 3] >> (i & 7) & 1) if i >> 3 < len(data) else False for i in range(count)]
