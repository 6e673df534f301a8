"""The HTTP side: on loopback alone, and closed to everybody who does not show the token.

A page in a browser can reach loopback by DNS rebinding, so `Host` must be this server's own, an `Origin` too where
there is one, and every request carries the bearer token of the file `mcp.token`, compared in constant time.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server import Server

from kvswap.core.atomic import write_atomic
from kvswap.core.errors import LocalFault
from kvswap.core.files import read_file

ADDRESS = "127.0.0.1"
TOKEN_FILE = "mcp.token"  # noqa: S105 - its name
PATH = "/mcp"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def token_of(home: Path) -> str:
    """Return the token of a home, which is made once: agent programs keep it in their settings."""
    path = home / TOKEN_FILE
    if path.exists():
        token = read_file(path, 256).decode("ascii", "replace").strip()
        if len(token) >= 32 and token.isascii():
            return token
    token = secrets.token_urlsafe(32)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(path, token.encode() + b"\n")
    return token


class Guard:
    """The gate in front of a server: lets in who names it rightly and shows its token."""

    def __init__(self, app: App, port: int, token: str) -> None:
        self._app = app
        self._token = f"Bearer {token}".encode()
        names = ("127.0.0.1", "localhost", "[::1]")
        self._hosts = {f"{name}:{port}".encode() for name in names}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        status, why = self._judge(scope) if scope["type"] == "http" else (403, "only HTTP is served")
        if status:
            return await _refuse(send, status, why)
        return await self._app(scope, receive, send)

    def _judge(self, scope: Scope) -> tuple[int, str]:
        """Return the status with which a request is refused, and why; 0 for one that is let in."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = {name: [value for key, value in headers if key == name] for name in (b"host", b"origin")}
        if len(given[b"host"]) != 1 or given[b"host"][0].lower() not in self._hosts:
            return 421, "this server answers only to its own loopback address"
        if any(origin.lower() not in self._origins for origin in given[b"origin"]):
            return 403, "this server does not answer web pages"
        shown = [value for key, value in headers if key == b"authorization"]
        if len(shown) != 1 or not hmac.compare_digest(shown[0], self._token):
            return 401, f"the bearer token is missing or wrong: the file {TOKEN_FILE} in the home has it"
        return 0, ""


async def _refuse(send: Send, status: int, why: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": why.encode()})


def listen(port: int) -> socket.socket:
    """Listen on loopback; port 0 is any.  Raises `LocalFault`."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((ADDRESS, port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise LocalFault(
            f"port {port} of {ADDRESS} cannot be used: {error.strerror}",
            cause="another program has it",
            hint="kvswap mcp --http --port 0  takes any",
        ) from error
    return listening


class _Uvicorn(uvicorn.Server):
    """A server that ends well at a signal, instead of raising it once more."""

    def capture_signals(self) -> Any:
        """Handle signals by ending."""
        return _Signals(self)


class _Signals:
    def __init__(self, server: uvicorn.Server) -> None:
        self._server = server

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._end)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _end(self) -> None:
        self._server.should_exit = True


async def serve(server: Server[Any], listening: socket.socket, token: str) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    port = listening.getsockname()[1]
    app = Guard(server.streamable_http_app(streamable_http_path=PATH, host=ADDRESS), port, token)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", timeout_graceful_shutdown=5
    )
    await _Uvicorn(config).serve(sockets=[listening])
