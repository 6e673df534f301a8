"""The asking end of a stream: requests are pipelined, answers come in order."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from kvswap.core.errors import NetworkTimeout, PeerError
from kvswap.core.limits import LIMITS
from kvswap.net import messages
from kvswap.net.transport import PeerAddress, Stream, Transport

T = TypeVar("T")
_IDLE_PER_PEER = 2
_IDLE = 64


def chunk_cap(length: int) -> int:
    """Return the most bytes that the answer to a chunk request may have: a chunk of this signed length, or an error."""
    return max(length + 256, LIMITS.error_bytes)


class Session:
    """A stream to one peer, for one task at a time."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.peer = stream.peer

    async def send(self, request: messages.Request) -> None:
        """Send a request without waiting for its answer; at most `LIMITS.pipelined_requests` may be open."""
        await self.stream.send(messages.encode_request(request), LIMITS.request_seconds)

    async def answer(self, kind: type[T], *, limit: int | None = None, seconds: float = LIMITS.request_seconds) -> T:
        """Receive the answer to the oldest open request, of at most `limit` bytes.

        Raises `NotFound` or `PeerError`.
        """
        most = messages.cap_of(kind).size if limit is None else limit
        return messages.decode_response(await self.stream.receive(most, seconds), kind)

    async def ask(self, request: messages.Request, kind: type[T]) -> T:
        """Send a request and receive its answer.  Raises `NotFound` or `PeerError`."""
        frame = await self.stream.exchange(
            messages.encode_request(request), messages.cap_of(kind).size, LIMITS.request_seconds
        )
        return messages.decode_response(frame, kind)

    async def chunk(self, cid: str, length: int) -> bytes:
        """Fetch the wire bytes of one chunk, whose signed wire length is `length`.

        Raises `NotFound` or `PeerError`.
        """
        await self.send(messages.GetChunk(cid))
        return await self.answer(bytes, limit=chunk_cap(length), seconds=LIMITS.chunk_seconds)


class Sessions:
    """A pool of streams kept open between requests, as opening one costs more round trips than a request.

    A stream that the other side closed meanwhile fails at the next request, which is then repeated on a fresh one; so a
    request may reach the peer twice, and must mean the same both times.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._idle: OrderedDict[tuple[str, int], tuple[Stream, float]] = OrderedDict()
        self._closing: set[asyncio.Future[None]] = set()

    async def ask(self, address: PeerAddress, request: messages.Request, kind: type[T], limit: int | None = None) -> T:
        """Send one request and receive its answer, of at most `limit` bytes.  Raises `NotFound` or `PeerError`."""
        stream, frame = await self._exchange(address, request, limit or messages.cap_of(kind).size)
        self._give(stream)
        return messages.decode_response(frame, kind)

    async def begin(self, address: PeerAddress, request: messages.Request, kind: type[T]) -> tuple[Session, T]:
        """Send one request, and return its answer with the stream, which the caller owns from then on.

        Raises `NotFound` or `PeerError`; the stream then returns to the pool.
        """
        stream, frame = await self._exchange(address, request, messages.cap_of(kind).size)
        try:
            return Session(stream), messages.decode_response(frame, kind)
        except BaseException:
            self._give(stream)
            raise

    async def _exchange(self, address: PeerAddress, request: messages.Request, most: int) -> tuple[Stream, bytes]:
        data = messages.encode_request(request)
        while True:
            stream = self._take(address.peer)
            reused = stream is not None
            if stream is None:
                if address.peer not in self._transport.connected():
                    await self._transport.connect(address)
                stream = await self._transport.open(address.peer)
            try:
                return stream, await stream.exchange(data, most, LIMITS.request_seconds)
            except PeerError as error:
                await stream.reset()
                if not reused or isinstance(error, NetworkTimeout):
                    raise
            except BaseException:
                await stream.reset()
                raise

    def _take(self, peer: str) -> Stream | None:
        oldest = time.monotonic() - LIMITS.idle_stream_seconds / 2
        for name in [n for n in self._idle if n[0] == peer]:
            stream, since = self._idle.pop(name)
            if since > oldest:
                return stream
            self._drop(stream)
        return None

    def _give(self, stream: Stream) -> None:
        self._idle[stream.peer, id(stream)] = (stream, time.monotonic())
        mine = [n for n in self._idle if n[0] == stream.peer]
        surplus = mine[:-_IDLE_PER_PEER] + list(self._idle)[: max(0, len(self._idle) - _IDLE)]
        for name in dict.fromkeys(surplus):
            self._drop(self._idle.pop(name)[0])

    def _drop(self, stream: Stream) -> None:
        task = asyncio.ensure_future(stream.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all idle streams."""
        for stream, _ in self._idle.values():
            self._drop(stream)
        self._idle.clear()
        await asyncio.gather(*self._closing, return_exceptions=True)


@asynccontextmanager
async def session(transport: Transport, peer: str) -> AsyncIterator[Session]:
    """Open a session with a peer; it is closed at the end of the block, or reset if the block raises."""
    stream = await transport.open(peer)
    try:
        yield Session(stream)
    except BaseException:
        await stream.reset()
        raise
    await stream.close()


def bitmap(flags: Sequence[bool]) -> bytes:
    """Pack flags into bytes: flag i is bit i % 8, least significant first, of byte i // 8."""
    out = bytearray(-(-len(flags) // 8))
    for index, flag in enumerate(flags):
        out[index >> 3] |= flag << (index & 7)
    return bytes(out)


def from_bitmap(data: bytes, count: int) -> list[bool]:
    """Unpack `count` flags that `bitmap` packed; flags beyond the last byte are False."""
    return [bool(data[i >> 3] >> (i & 7) & 1) if i >> 3 < len(data) else False for i in range(count)]
