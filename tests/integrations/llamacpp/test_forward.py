"""Requests pass through byte by byte; where the server fails, the client sees what it would see without the proxy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from kvswap.integrations.llamacpp.proxy.forward import Forwarder, first_part, streamed
from kvswap.integrations.llamacpp.proxy.watching import AnswerWatcher

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def between(serve: Serve | None, watcher: AnswerWatcher | None = None) -> AsyncIterator[Streams]:
    """A client's connection to a forwarder before a server that `serve` is; without one nobody listens."""
    server = await asyncio.start_server(serve or (lambda r, w: w.close()), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if serve is None:
        server.close()
        await server.wait_closed()
    forwarder = Forwarder(f"http://127.0.0.1:{port}")

    async def answer(request: web.Request) -> web.StreamResponse:
        return await forwarder.forward(request, streamed(request), watcher)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        await runner.cleanup()
        await forwarder.close()
        server.close()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def test_a_piece_reaches_the_client_before_the_next_is_sent() -> None:
    """The server sends the second piece once the client has the first: nothing waits for more."""
    had = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"9\r\ndata: 1\n\n\r\n")
        await had.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async def client() -> None:
        watcher = AnswerWatcher()
        async with between(serve, watcher) as (reader, writer):
            writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            await head_of(reader)
            assert await reader.readexactly(14) == b"9\r\ndata: 1\n\n\r\n"
            had.set()
            assert await reader.readexactly(19) == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
            assert watcher.ended and watcher.status == 200

    asyncio.run(client())


def test_a_piece_of_a_request_reaches_the_server_before_the_next_is_sent() -> None:
    got: list[bytes] = []
    had = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await head_of(reader))
        got.append(await reader.readexactly(3))
        had.set()
        got.append(await reader.readexactly(3))
        writer.write(b"HTTP/1.1 204 Fine\r\n\r\n")

    async def client() -> None:
        async with between(serve) as (reader, writer):
            writer.write(b"POST /a%2Fb?q=%20 HTTP/1.1\r\nHost: name\r\nX-Odd: \xc3\xa9\r\nContent-Length: 6\r\n\r\nabc")
            await had.wait()
            writer.write(b"def")
            answer = await head_of(reader)
            assert answer.startswith(b"HTTP/1.1 204 Fine\r\n")
        assert got[1:] == [b"abc", b"def"]
        lines = got[0].split(b"\r\n")
        assert lines[0] == b"POST /a%2Fb?q=%20 HTTP/1.1"
        assert sorted(line for line in lines[1:] if line) == sorted(
            [b"Host: name", b"X-Odd: \xc3\xa9", b"Content-Length: 6", b"Connection: close"]  # each has its own
        )

    asyncio.run(client())


def test_a_server_that_is_cut_off_cuts_off_the_client() -> None:
    """A clean end would make a half answer look whole."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await writer.drain()
        writer.close()

    async def client() -> None:
        watcher = AnswerWatcher()
        async with between(serve, watcher) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await head_of(reader)
            rest = await reader.read()
            assert rest.startswith(b"3\r\nabc\r\n") and not rest.endswith(b"0\r\n\r\n")
            assert not watcher.ended

    asyncio.run(client())


def test_a_server_that_is_not_there_or_says_nothing_is_said_in_its_own_form() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.close()

    async def client(serve: Serve | None, status: int) -> None:
        async with between(serve) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert int(head.split()[1]) == status
            error = json.loads(body)["error"]
            assert error["code"] == status and error.keys() == {"code", "message", "type"}

    asyncio.run(client(None, 503))
    asyncio.run(client(closes, 502))


def test_a_client_that_leaves_ends_its_request_at_the_server() -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        assert await reader.read() == b""
        left.set()

    async def client() -> None:
        async with between(serve) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await head_of(reader)
            writer.close()
            await left.wait()

    asyncio.run(client())


def test_a_long_body_is_read_in_part_and_passed_on_whole() -> None:
    async def run() -> None:
        seen: list[tuple[bytes, bytes]] = []

        async def answer(request: web.Request) -> web.StreamResponse:
            first, longer = await first_part(request, 1000)
            seen.append((first, b"" if longer is None else b"".join([piece async for piece in longer])))
            return web.Response()

        application = web.Application()
        application.router.add_route("*", "/", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        for length in (0, 1000, 1001, 200_000):
            writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length + b"x" * length)
            await head_of(reader)
        writer.close()
        await runner.cleanup()
        lengths = [(len(first), len(longer)) for first, longer in seen]
        assert lengths == [(0, 0), (1000, 0), (0, 1001), (0, 200_000)]

    asyncio.run(run())


def test_counts_are_read_of_an_answer_and_not_of_what_it_says() -> None:
    watcher = AnswerWatcher()
    watcher.passed(b'data: {"usage":{"cache_read_input_tokens":7}}\n\n' + b"x" * 100_000)
    assert watcher.cached == 7 and watcher.tokens is None
    watcher.passed(
        json.dumps(
            {"content": 'he said "cache_n": 5', "timings": {"cache_n": 900, "prompt_n": 3, "predicted_n": 2}}
        ).encode()
    )
    assert watcher.cached == 900 and watcher.tokens == 905
    other = AnswerWatcher()
    other.passed(json.dumps({"content": '"cache_n":5 "cached_tokens": 6'}).encode())
    assert other.cached is None
