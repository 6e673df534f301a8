"""Passing requests through: what llama-server says reaches the client byte by byte, as it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterable
from typing import Protocol

import aiohttp
from aiohttp import web
from yarl import URL

_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)  # headers of one connection (RFC 9110, 7.6.1)
_NOT_ADDED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")  # aiohttp adds them where the client sent none
_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 86_400.0  # a prefill on a slow machine takes hours, in which nothing comes
_WRITE_SECONDS = 600.0  # for a client that reads nothing, as with llama-server itself
_PIECE = 1 << 16


class Watcher(Protocol):
    """An onlooker of an answer that passes through, who changes nothing of it."""

    def answered(self, status: int) -> None:
        """Take note that the server has begun to answer."""

    def passed(self, data: bytes) -> None:
        """Take note of bytes of the answer."""

    def finished(self) -> None:
        """Take note that the answer has come to its own end."""


class Forwarder:
    """The connections to the llama-server at `url`.

    Each request has a connection of its own: one that is kept open may be closed by the server just when it is used
    again, and a request to generate cannot be sent twice.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The client session, opened when it is first used."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=_NOT_ADDED,
                timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS, sock_connect=_CONNECT_SECONDS),
                read_bufsize=_PIECE,
            )
        return self._session

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def forward(
        self, request: web.Request, body: bytes | AsyncIterable[bytes] | None, watcher: Watcher | None = None
    ) -> web.StreamResponse:
        """Send a request to the server as it came, with this body, and its answer to the client.

        Where the server is not reached, or ends before it answers, the client gets an error in llama-server's form;
        where it is cut off in its answer, so is the client.
        """
        try:
            sent = self.session.request(
                request.method,
                URL(self.url + request.raw_path, encoded=True),
                headers=_end_to_end(request),
                data=body,
                allow_redirects=False,
            )
            async with sent as answer:
                if watcher is not None:
                    watcher.answered(answer.status)
                return await _relay(request, answer, watcher)
        except aiohttp.ClientConnectorError:
            return server_error(
                503, "llama-server does not answer: it is loading its model, or has ended", "unavailable_error"
            )
        except (aiohttp.ClientError, TimeoutError):
            return server_error(502, "llama-server ended before it answered", "server_error")


def _end_to_end(request: web.Request) -> list[tuple[str, str]]:
    named = {name.strip().lower() for name in request.headers.get("Connection", "").split(",")}
    dropped = _HOP | named | {"expect"}  # which was answered here
    return [(name, value) for name, value in request.headers.items() if name.lower() not in dropped]


async def _relay(request: web.Request, answer: aiohttp.ClientResponse, watcher: Watcher | None) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, reason=answer.reason)
    for name, value in answer.headers.items():
        if name.lower() not in _HOP:
            response.headers.add(name, value)
    bodiless = request.method == "HEAD" or answer.status in (204, 304)
    if "Content-Length" not in answer.headers and not bodiless and request.version >= (1, 1):
        response.enable_chunked_encoding()
    await response.prepare(request)
    try:
        async for data in answer.content.iter_any():
            if watcher is not None:
                watcher.passed(data)
            async with asyncio.timeout(_WRITE_SECONDS):
                await response.write(data)
        if watcher is not None:
            watcher.finished()
        await response.write_eof()
    except (aiohttp.ClientError, TimeoutError):  # cut off: the client has to see that, not a clean end
        if request.transport is not None:
            request.transport.close()
    return response


def server_error(status: int, message: str, kind: str) -> web.Response:
    """Return an error in the form that llama-server has for its own."""
    text = json.dumps({"error": {"code": status, "message": message, "type": kind}})
    return web.Response(status=status, text=text, content_type="application/json")


async def first_part(request: web.Request, limit: int) -> tuple[bytes, AsyncIterable[bytes] | None]:
    """Read the body of a request, at most `limit` bytes; of a longer one also return all of it, to be passed on."""
    data = bytearray()
    while len(data) <= limit:
        async with asyncio.timeout(_WRITE_SECONDS):
            piece = await request.content.read(_PIECE)
        if not piece:
            break
        data += piece
    if len(data) <= limit:
        return bytes(data), None
    return b"", _joined(bytes(data), request)


async def _joined(first: bytes, request: web.Request) -> AsyncIterable[bytes]:
    yield first
    async for piece in request.content.iter_chunked(_PIECE):
        yield piece


def streamed(request: web.Request) -> AsyncIterable[bytes] | None:
    """Return the body of a request to be passed on as it comes, or None where it has none."""
    return request.content.iter_chunked(_PIECE) if request.body_exists else None
