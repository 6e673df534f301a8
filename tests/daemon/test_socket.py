"""The API on a Unix socket: closed to others, without a token, gone with the daemon, and no reason not to start."""

from __future__ import annotations

import asyncio
import os
import socket as sockets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from kvswap import AsyncClient, Client
from kvswap.api import IdentityResult
from kvswap.core.errors import DaemonNotRunning, KvswapError
from kvswap.daemon import socket
from kvswap.daemon.guard import guard
from tests.support import Daemon, run


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="kv-") as directory:
        yield Path(directory)


def test_both_clients_call_a_daemon_by_its_socket(short: Path) -> None:
    path = short / socket.NAME
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(path))  # as by a daemon that was killed
    node = Daemon(short).start()
    try:
        found = path.stat()
        assert stat.S_ISSOCK(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o600 and found.st_uid == os.getuid()
        expected = Client(node.home).id()
        with Client(url=f"unix:{path}") as client:
            assert client.id() == expected
            assert client.status().home == str(node.home)

        async def ask() -> None:
            async with AsyncClient(url=f"unix:{path}") as other:
                assert await other.id() == expected

        asyncio.run(ask())
    finally:
        node.stop()
    assert not path.exists()
    with pytest.raises(DaemonNotRunning):
        Client(url=f"unix:{path}").id()


def test_a_token_is_asked_for_over_tcp_alone(short: Path) -> None:
    async def work() -> None:
        app = web.Application(middlewares=[guard("t")])
        app.router.add_get("/v1/id", lambda request: _json())
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        path = await socket.listen(runner, short)
        try:
            assert path is not None
            assert await AsyncClient(url=f"unix:{path}").id() == identity
            assert await AsyncClient(url=f"http://127.0.0.1:{port}", token="t").id() == identity
            with pytest.raises(KvswapError, match="token"):
                await AsyncClient(url=f"http://127.0.0.1:{port}", token="u").id()
        finally:
            await runner.cleanup()
            socket.remove(path)
        assert not path.exists()

    async def _json() -> web.Response:
        return web.json_response(identity.to_json())

    identity = IdentityResult(peer="x", publisher="y", addresses=[])

    run(work())


@pytest.mark.parametrize("why", ["too long", "no directory", "a file in its place"])
def test_without_a_socket_tcp_serves(why: str, short: Path) -> None:
    home = {"too long": short / ("x" * 100), "no directory": short / "gone"}.get(why, short)
    if why == "too long":
        home.mkdir()
    if why == "a file in its place":
        (home / socket.NAME).write_text("mine")

    async def work() -> None:
        runner = web.AppRunner(web.Application())
        await runner.setup()
        try:
            assert await socket.listen(runner, home) is None
        finally:
            await runner.cleanup()

    run(work())
    if why == "a file in its place":
        assert (home / socket.NAME).read_text() == "mine"
