"""The HTTP side: who is let in, and the SDK's own client over it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

from kvswap.client import AsyncClient
from kvswap.core.errors import LocalFault
from kvswap.mcp import http
from kvswap.mcp.folders import AllowedFolders
from kvswap.mcp.server import make_server
from kvswap.mcp.tools import ToolContext
from tests.mcp.published import DIGEST, text_of
from tests.support import ROOT, Daemon, run

TOKEN = "t" * 43
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
ACCEPT = {"Accept": "application/json, text/event-stream"}


@asynccontextmanager
async def serving(home: Path) -> AsyncIterator[int]:
    """The tools of a home over HTTP, in this process; yields the port."""
    server = make_server(ToolContext(AsyncClient(home), AllowedFolders()))
    listening = http.listen(0)
    port = listening.getsockname()[1]
    task = asyncio.create_task(http.serve(server, listening, TOKEN))
    try:
        yield port
    finally:
        signal.raise_signal(signal.SIGTERM)
        await task
        listening.close()


def statuses(home: Path, *headers: dict[str, str]) -> list[int]:
    """The status of a request with each of these headers; `{port}` in one is the server's."""

    async def all_of_them() -> list[int]:
        async with serving(home) as port, aiohttp.ClientSession() as session:
            made = []
            for given in headers:
                named = {name: value.replace("{port}", str(port)) for name, value in given.items()}
                url = f"http://127.0.0.1:{port}/mcp"
                async with session.post(url, json=LIST, headers=ACCEPT | named) as response:
                    made.append(response.status)
            return made

    return run(all_of_them())


def test_only_who_shows_the_token_and_names_the_server_rightly_is_let_in(tmp_path: Path) -> None:
    shown = {"Authorization": f"Bearer {TOKEN}"}
    right = [
        shown,
        shown | {"Host": "localhost:{port}"},
        shown | {"Origin": "http://127.0.0.1:{port}"},
    ]
    wrong = {
        401: [{}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {TOKEN}"}, {"Authorization": TOKEN}],
        421: [
            shown | {"Host": "example.org"},
            shown | {"Host": "example.org:{port}"},
            shown | {"Host": "127.0.0.1:1"},
            shown | {"Host": "127.0.0.1"},
            shown | {"Host": "127.0.0.1.example.org:{port}"},
        ],
        403: [
            shown | {"Origin": "https://example.org"},
            shown | {"Origin": "http://127.0.0.1:1"},  # a page of another program on this machine
            shown | {"Origin": "null"},
            shown | {"Origin": "http://localhost"},
        ],
    }
    made = statuses(tmp_path, *right, *(one for these in wrong.values() for one in these))
    assert not {401, 403, 421} & set(made[: len(right)]), made  # the protocol's own answer to half a handshake
    assert made[len(right) :] == [status for status, these in wrong.items() for _ in these]


def test_a_guard_refuses_two_headers_and_what_is_no_http() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("let in")

    async def status(kind: str, *headers: tuple[bytes, bytes]) -> int:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        guard = http.Guard(app, 80, TOKEN)
        await guard({"type": kind, "headers": list(headers)}, None, send)  # type: ignore[arg-type]
        return int(sent[0]["status"])

    host, token = (b"host", b"127.0.0.1:80"), (b"authorization", f"Bearer {TOKEN}".encode())
    assert run(status("http", host, host, token)) == 421
    assert run(status("http", token)) == 421
    assert run(status("http", host, token, token)) == 401
    assert run(status("http", host, token, (b"origin", b"http://127.0.0.1:80"), (b"origin", b"null"))) == 403
    assert run(status("websocket", host, token)) == 403


def test_the_token_is_made_once_for_the_user_alone(tmp_path: Path) -> None:
    token = http.token_of(tmp_path / "home")
    assert len(token) >= 43 and http.token_of(tmp_path / "home") == token
    assert (tmp_path / "home" / http.TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / "home" / http.TOKEN_FILE).write_text("short")
    assert http.token_of(tmp_path / "home") not in ("short", token)


def test_a_port_that_is_taken_is_said() -> None:
    with http.listen(0) as taken, pytest.raises(LocalFault, match="cannot be used"):
        http.listen(taken.getsockname()[1])


def test_the_sdks_client_asks_over_http(node: Daemon) -> None:
    async def asked() -> tuple[Any, list[float]]:
        made: list[float] = []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            made.append(progress)

        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with serving(node.home) as port, create_mcp_http_client(headers) as web:
            transport = streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=web)
            async with Client(transport) as client:
                given = {"ref": DIGEST, "question": "What?", "max_tokens": 8}
                return await client.call_tool("ask", given, progress_callback=report), made

    answer, made = run(asked())
    assert not answer.is_error, text_of(answer)
    assert made and made == sorted(set(made))


@pytest.mark.agents
def test_the_command_serves_until_it_is_ended(node: Daemon) -> None:
    command = [sys.executable, "-m", "kvswap", "mcp", "--http", "--port", "0", "--json", "--home", str(node.home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        token = Path(ready["token_file"]).read_text().strip()

        async def listed() -> list[str]:
            async with create_mcp_http_client({"Authorization": f"Bearer {token}"}) as web:
                async with Client(streamable_http_client(ready["url"], http_client=web)) as client:
                    return [tool.name for tool in (await client.list_tools()).tools]

        assert "ask" in run(listed())
    finally:
        process.terminate()
        assert process.wait(60) == 0
        process.stdout.close()  # type: ignore[union-attr]
