"""The sender of the asyncio client, on aiohttp, which is imported with the first request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from kvswap.client import calls
from kvswap.client.answers import (
    HEADER,
    HEARTBEAT,
    REQUEST_HEADER,
    error_of,
    message_of,
    not_ours,
    not_there,
    note_answer,
    silence_seconds,
    silent,
    went_away,
    whole_answer,
)
from kvswap.client.calls import Call
from kvswap.client.target import Target
from kvswap.core.errors import KvswapError
from kvswap.core.failures import as_kvswap_error

to_thread = asyncio.to_thread


async def _pieces(frames: calls.FrameSource) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


class AsyncSender:
    """The sender of calls to one daemon, a connection for each."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def lines(self, call: Call[Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the messages of an answer; of one that is no answer of lines, the whole as a result."""
        import aiohttp

        where, address = self._target.where, self._target.address()
        frames = calls.FrameSource(call.frames) if call.frames is not None else None
        body: dict[str, Any] = {"json": call.body} if frames is None else {"data": _pieces(frames)}
        # Between lines this task waits itself, by the heartbeats that the head of the answer promises.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=calls.SHORT_SECONDS)
        connector = aiohttp.UnixConnector(address.socket) if address.socket is not None else None
        waits, began = call.head_seconds, time.monotonic()
        try:
            async with aiohttp.ClientSession(
                connector=connector, timeout=timeout, headers=address.headers, read_bufsize=1 << 20
            ) as session:
                async with asyncio.timeout(waits):
                    response = await session.request(call.method, address.url + call.path, **body)
                note_answer(call, response.status, response.headers.get(REQUEST_HEADER), began)
                async with response:
                    if response.status != 200 or not call.lines:
                        async with asyncio.timeout(waits):
                            answer = await response.read()
                        if response.status != 200:
                            raise error_of(message_of(answer, where), response.status)
                        yield whole_answer(answer, call, where)
                        return
                    waits = silence_seconds(call, response.headers.get(HEADER))
                    while True:
                        async with asyncio.timeout(waits):
                            line = await response.content.readline()
                        if not line:
                            return
                        message = message_of(line, where)
                        if message.get("event") != HEARTBEAT:
                            yield message
        except KvswapError:
            raise
        except (OSError, aiohttp.ClientError) as error:  # what a callback of the caller's raises is not seen here
            if frames is not None and frames.error is not None:
                raise frames.error from None
            raise self._error_of(error, waits) from error

    async def pieces(
        self, call: Call[Any], on_headers: Callable[[Mapping[str, str]], None]
    ) -> AsyncGenerator[bytes, None]:
        """Yield an answer that is bytes, piece by piece, after `on_headers` was called with its headers."""
        import aiohttp

        where, address = self._target.where, self._target.address()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=calls.SHORT_SECONDS)
        connector = aiohttp.UnixConnector(address.socket) if address.socket is not None else None
        waits, began = call.seconds, time.monotonic()
        try:
            async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=address.headers) as session:
                async with asyncio.timeout(waits):
                    response = await session.request(call.method, address.url + call.path)
                note_answer(call, response.status, response.headers.get(REQUEST_HEADER), began)
                async with response:
                    waits = calls.SHORT_SECONDS
                    if response.status != 200:
                        async with asyncio.timeout(waits):
                            raise error_of(message_of(await response.read(), where), response.status)
                    on_headers(response.headers)
                    while True:
                        async with asyncio.timeout(waits):
                            piece = await response.content.read(calls.PIECE)
                        if not piece:
                            return
                        yield piece
        except KvswapError:
            raise
        except (OSError, aiohttp.ClientError) as error:
            raise self._error_of(error, waits) from error

    def _error_of(self, error: Exception, waited: float) -> KvswapError:
        import aiohttp

        where = self._target.where
        if isinstance(error, aiohttp.ClientConnectorError):
            return not_there(where)
        if isinstance(error, TimeoutError):
            return silent(where, waited)
        if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL):  # nothing that speaks HTTP
            return not_ours(where)
        if isinstance(error, ConnectionError | aiohttp.ClientError):
            return went_away(error)
        return as_kvswap_error(error, "calling the daemon")
