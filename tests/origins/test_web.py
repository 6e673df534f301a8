"""Web servers as origins, and what they do wrong: endless bodies, error pages, redirects that lead where none may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from kvswap.core.errors import IntegrityError, NetworkTimeout, NotFound, OriginError, OriginRefused, PeerBusy
from kvswap.core.failures import is_own
from kvswap.core.limits import Limits
from kvswap.net import web as hops
from kvswap.net.dialling import BY_HAND
from kvswap.net.web import _further, reachable
from kvswap.origins import web as backend
from kvswap.origins.web import WebBackend
from tests.origins.places import check_reading
from tests.support import run

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[WebBackend]:
    """A web server that answers every path so, and its origin below `/kv`."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, 0).start()
    origin = WebBackend(f"http://{host}:{runner.addresses[0][1]}/kv")
    try:
        yield origin
    finally:
        await origin.close()
        await runner.cleanup()


async def into(origin: WebBackend, size: int) -> None:
    await origin.read_into("x", memoryview(bytearray(size)), lambda n: None)


def test_a_static_server_does_what_a_place_must(tmp_path: Path) -> None:
    async def static(request: web.Request) -> web.StreamResponse:
        path = tmp_path / request.match_info["path"].removeprefix("kv/")
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    async def body() -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "one").write_bytes(b"0123456789")
        (tmp_path / "a" / "large").write_bytes(bytes(7) + b"\x07" + bytes((3 << 20) - 8))
        async with serving(static) as origin:
            await check_reading(origin)
            for work in (origin.put("x", b""), origin.delete("x"), origin.same("x", b"")):
                with pytest.raises(OriginRefused, match="read only"):
                    await work
            with pytest.raises(OriginRefused):
                _ = [row async for row in origin.files("")]
        with pytest.raises(OriginError, match="was not reached") as raised:
            await origin.get("a/one", 10)
        assert not is_own(raised.value)

    run(body())


def test_an_endless_body_ends_at_its_cap() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(100_000))

    async def body() -> None:
        async with serving(endless) as origin:
            with pytest.raises(OriginError, match="more than 1000 bytes"):
                await origin.get("x", 1000)
            with pytest.raises(IntegrityError, match="more than"):
                await into(origin, 250_000)

    run(body())


def test_silence_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(bytes(10))
        await asyncio.sleep(3600)
        return response

    async def body() -> None:
        monkeypatch.setattr(backend, "LIMITS", Limits(origin_seconds=0.3, origin_upload_seconds=0.3))
        async with serving(silent) as origin:
            with pytest.raises(NetworkTimeout):
                await origin.get("x", 1000)
            with pytest.raises(NetworkTimeout):
                await into(origin, 1000)

    run(body())


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (403, NotFound), (401, OriginRefused), (500, OriginError), (503, PeerBusy), (204, OriginError)],
)
def test_a_status_is_an_error_of_its_kind(status: int, kind: type[Exception]) -> None:
    async def answering(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=None if status == 204 else b"a page of ten kilobytes")

    async def body() -> None:
        async with serving(answering) as origin:
            with pytest.raises(kind):
                await origin.get("x", 1000)
            with pytest.raises(kind):
                await into(origin, 23)

    run(body())


def test_an_error_page_with_200_and_a_body_that_is_cut_off_are_no_chunk() -> None:
    async def page(request: web.Request) -> web.StreamResponse:
        return web.Response(text="<html>sorry</html>", content_type="text/html")

    async def cut(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(bytes(10))
        assert request.transport is not None
        request.transport.close()
        return response

    async def whole_for_a_part(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"0123456789")

    async def body() -> None:
        async with serving(page) as origin:
            with pytest.raises(IntegrityError, match="offers 18 bytes"):
                await into(origin, 1000)
        async with serving(cut) as origin:
            with pytest.raises(OriginError):
                await into(origin, 1000)
        async with serving(whole_for_a_part) as origin:
            with pytest.raises(OriginError, match="answered 200"):
                await origin.read_into("x", memoryview(bytearray(4)), lambda n: None, 3)

    run(body())


@pytest.mark.parametrize(
    "place",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://10.1.2.3/x",
        "http://192.168.1.1:8080/x",
        "http://[fd00::1]/x",
        "http://0.0.0.0/x",
        "file:///etc/passwd",
        "ftp://example.org/x",
        "http://user:word@127.0.0.1/x",
        "http://127.0.0.1:22/x",
        "http://127.0.0.1:99999/x",
    ],
)
def test_a_redirect_leads_to_no_other_network(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From loopback to private networks, metadata services and other schemes; nothing is dialled."""

    async def leading(request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": place})

    async def body() -> None:
        async with serving(leading) as origin:
            with pytest.raises(OriginError, match="is not followed"):
                await origin.get("x", 1000)

    run(body())


def test_a_redirect_is_followed_where_the_server_itself_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def twice(request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        if path == "kv/x":
            return web.Response(status=302, headers={"Location": f"http://localhost:{request.url.port}/kv/y"})
        if path == "kv/y":
            return web.Response(status=307, headers={"Location": "../z"})
        return web.Response(body=b"found") if path == "z" else web.Response(status=301, headers={"Location": "round"})

    async def body() -> None:
        async with serving(twice) as origin:
            assert (await origin.get("x", 10)).data == b"found"
            with pytest.raises(OriginError, match="too many redirects"):
                await origin.get("round", 10)

    run(body())


def test_the_rule_of_redirects() -> None:
    """A name is judged by every address that it has; from the internet nothing leads into a private network."""
    assert reachable("10.0.0.1", BY_HAND) and reachable("127.0.0.1", BY_HAND)
    assert not reachable("169.254.169.254", BY_HAND)
    for sender, host, leads in [
        ("8.8.8.8", "1.1.1.1", True),
        ("8.8.8.8", "10.0.0.1", False),
        ("8.8.8.8", "127.0.0.1", False),
        ("8.8.8.8", "::ffff:10.0.0.1", False),
        ("10.0.0.2", "10.0.0.1", True),
        ("10.0.0.2", "127.0.0.1", False),
        ("127.0.0.1", "127.0.0.2", True),
        ("", "10.0.0.1", False),
    ]:
        assert reachable(host, sender) is leads, (sender, host)
    with pytest.raises(OriginError, match="https to http"):
        _further("https://a.example/x", "http://a.example/x")
    assert _further("https://a.example/x/y", "z") == "https://a.example/x/z"

    async def resolved() -> None:
        with pytest.raises(OSError, match="nowhere"):
            await hops.JudgedResolver("8.8.8.8").resolve("localhost", 80)
        assert await hops.JudgedResolver().resolve("localhost", 80)

    run(resolved())
