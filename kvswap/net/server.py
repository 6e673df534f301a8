"""Answering peers: read a request, ask the handler, send the answer, until the stream ends.

Requests of one stream are answered in order.  A malformed request ends the stream; an error of the
handler is an answer.  Per-peer and idle limits keep a silent or greedy peer cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from kvswap.core.errors import KvswapError, MalformedMessage, PeerError
from kvswap.core.limits import LIMITS
from kvswap.net import messages
from kvswap.net.transport import Stream

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
        while True:
            try:
                frame = await stream.receive(LIMITS.request_bytes, LIMITS.idle_stream_seconds)
            except PeerError:
                return  # ended, or silent for too long
            try:
                response = messages.encode_ok(await self._answer(stream.peer, messages.decode_request(frame)))
            except MalformedMessage:
                raise
            except KvswapError as error:
                response = messages.encode_error(error)
            await stream.send(response, LIMITS.chunk_seconds)
