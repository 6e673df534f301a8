"""Answers of JSON lines: a long silence is broken by heartbeats, so that a client can tell work from a frozen daemon."""

import asyncio
import json

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from kvswap.api import GroupResult, OtherEvent
from kvswap.core.errors import NotFound
from kvswap.daemon import requests
from tests.support import run


async def lines(work, most=None):
    """The lines of an answer to `work`; only the first `most`."""
    got = []

    async def handler(request):
        return await requests.stream(request, work)

    app = web.Application()
    app.router.add_get("/", handler)
    async with TestClient(TestServer(app)) as client:
        async with client.get("/") as response:
            async for line in response.content:
                got.append(json.loads(line))
                if len(got) == most:
                    break
    return got


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(requests, "_HEARTBEAT_SECONDS", 0.01)


def test_work_that_says_nothing_is_heard_of():
    async def main():
        beats = asyncio.Event()

        async def work(progress):
            await beats.wait()
            return GroupResult(name="one")

        async def begin():
            async def handler(request):
                return await requests.stream(request, work)

            app = web.Application()
            app.router.add_get("/", handler)
            got = []
            async with TestClient(TestServer(app)) as client:
                async with client.get("/") as response:
                    async for line in response.content:
                        got.append(json.loads(line))
                        if len(got) == 3:
                            beats.set()
            return got

        got = await begin()
        assert got[:3] == [{"event": "heartbeat"}] * 3
        assert got[-1] == {"result": {"name": "one"}}

    run(main())


def test_after_the_answer_there_is_nothing_more():
    async def work(progress):
        await progress(OtherEvent(kind="one"))
        raise NotFound("not here")

    got = run(lines(work))
    assert [line for line in got if line != {"event": "heartbeat"}] == [
        {"event": "one"},
        {"error": NotFound("not here").to_dict()},
    ]
    assert "error" in got[-1]


def test_a_caller_that_left_ends_the_work():
    async def main():
        ended = asyncio.Event()

        async def work(progress):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        async def handler(request):
            return await requests.stream(request, work)

        app = web.Application()
        app.router.add_get("/", handler)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while b"heartbeat" not in await reader.readline():
            pass
        writer.transport.abort()
        await ended.wait()
        await runner.cleanup()

    run(main())


@pytest.mark.parametrize("sizes", [[], [0], [3], [500], [501], [2, 1], [500, 500, 7], [1203]])
def test_many_rows_are_lines_for_who_accepts_them_and_one_text_for_all_others(sizes):
    numbers = iter(range(10_000))
    pages = [[GroupResult(name=str(next(numbers))) for _ in range(size)] for size in sizes]
    rows = [row.to_json() for page in pages for row in page]

    async def handler(request):
        return await requests.send_rows(request, "groups", pages)

    async def main():
        app = web.Application()
        app.router.add_get("/", handler)
        async with TestClient(TestServer(app)) as client:
            async with client.get("/") as whole:
                assert whole.content_type == "application/json"
                assert await whole.json() == {"groups": rows}
            async with client.get("/", headers={"Accept": requests.NDJSON}) as response:
                text = await response.text()
                if response.content_type == "application/json":
                    assert len(rows) <= 500 and json.loads(text) == {"groups": rows}
                else:
                    assert response.content_type == requests.NDJSON
                    lines = [json.loads(line) for line in text.splitlines()]
                    assert max(map(len, lines), default=0) <= 500
                    assert [row for line in lines for row in line] == rows

    run(main())


@pytest.mark.parametrize("length", [0, 1, 500, 501, 1203])
def test_a_long_answer_is_one_text_of_which_no_part_is_made_at_once(length):
    chunks = [{"cid": f"é{number}", "length": number, "more": [1, None]} for number in range(length)]
    value = {"a": 1.5, "none": {}, "manifest": {"chunks": chunks, "pair": (1, 2), "chain": ["x"] * length}}
    texts = list(requests._pieces(value))
    assert "".join(texts) == json.dumps(value)
    assert max(map(len, texts)) < 500 * 60

    async def main():
        async def handler(request):
            return await requests.send_long(request, value)

        app = web.Application()
        app.router.add_get("/", handler)
        async with TestClient(TestServer(app)) as client:
            async with client.get("/") as response:
                assert response.content_type == "application/json"
                assert await response.text() == json.dumps(value)

    run(main())


def test_what_is_sent_is_gathered():
    assert list(requests._gathered(["a", "b"])) == [b"ab"] and list(requests._gathered([])) == []
    long = "x" * requests._PIECE_BYTES
    assert list(requests._gathered(["a", long, "b"])) == [b"a" + long.encode(), b"b"]
