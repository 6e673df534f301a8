"""Answering peers: read a request, ask the handler, send the answer, until the stream ends.

Requests of one stream are answered in order.  A malformed request ends the stream; an error of the
handler is an answer.  Per-peer and idle limits keep a silent or greedy peer cheap.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from kvswap.core.errors import KvswapError, PeerError
from kvswap.core.limits import LIMITS
from kvswap.net import messages
from kvswap.net.transport import Stream

_PREPARED_AHEAD = 2
Answer = Callable[[str, messages.Request], Awaitable[Any]]


class Server:
    """The serving end of every incoming stream."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._streams: Counter[str] = Counter()

    async def __call__(self, stream: Stream) -> None:
        if self._streams[stream.peer] >= LIMITS.streams_per_peer:
            await stream.reset()
            return
        self._streams[stream.peer] += 1
        try:
            await self._serve(stream)
        except PeerError:
            await stream.reset()
        except BaseException:
            await stream.reset()
            raise
        else:
            await stream.close()
        finally:
            self._streams[stream.peer] -= 1
            self._streams += Counter()

    async def _serve(self, stream: Stream) -> None:
        """Answers are prepared a few ahead while earlier ones are on their way out."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_PREPARED_AHEAD)
        reader = asyncio.create_task(self._read(stream, answers))
        try:
            while (prepared := await answers.get()) is not None:
                await stream.send(await prepared, LIMITS.chunk_seconds)
            await reader
        finally:
            reader.cancel()
            while not answers.empty():
                waiting = answers.get_nowait()
                if waiting is not None:
                    waiting.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _read(self, stream: Stream, answers: asyncio.Queue[asyncio.Task[bytes] | None]) -> None:
        """Requests in; raises `MalformedMessage` for one that is not of the protocol."""
        try:
            while True:
                try:
                    frame = await stream.receive(LIMITS.request_bytes, LIMITS.idle_stream_seconds)
                except PeerError:
                    return  # ended, or silent for too long
                request = messages.decode_request(frame)
                await answers.put(asyncio.create_task(self._respond(stream.peer, request)))
        finally:
            await answers.put(None)

    async def _respond(self, peer: str, request: messages.Request) -> bytes:
        try:
            return messages.encode_ok(await self._answer(peer, request))
        except KvswapError as error:
            return messages.encode_error(error)
