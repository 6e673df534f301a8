"""Who may call the local API.

Loopback alone protects nobody: any page in a browser can reach it by DNS rebinding (Ollama
GHSA-5jx5-hqx5-2vrj, Transmission CVE-2018-5702).  So every request needs a `Host` that names this
machine's loopback, no foreign `Origin`, and - but for the health checks - the bearer token of the
run-file, compared in constant time.  Over the socket in the home, whose mode says who may open it, no token is asked
for.
"""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from kvswap.daemon.page.guard import is_page
from kvswap.daemon.socket import came_by_it

__all__ = ["Handler", "guard"]

_OPEN = frozenset({"/healthz", "/readyz"})
_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_HOST = ("the name was resolved from elsewhere, as by DNS rebinding", "call http://127.0.0.1:PORT")
_ORIGIN = ("a page in a browser calls it", "call it from a program, without an Origin header")
_TOKEN = ("the daemon was started anew, or the token was typed", "daemon.json in the home has the token")


def _host_name(value: str) -> str:
    name, separator, port = value.rpartition(":")
    return name if separator and port.isdigit() else value


def _refuse(status: int, code: str, message: str, cause: str, hint: str) -> web.Response:
    problem = {"code": code, "message": message, "cause": cause, "hint": hint}
    return web.json_response({"error": problem}, status=status)


def _bytes(header: str) -> bytes:
    """Return a header as it came: what is not UTF-8 in it was decoded to lone surrogates."""
    return header.encode("utf-8", "surrogateescape")


def guard(token: str, page: Middleware | None = None) -> Middleware:
    """Make the middleware that lets in who has the token, and nobody else; `page` judges who calls the local page."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if page is not None and is_page(request.path):
            return await page(request, handler)
        if _host_name(request.headers.get("Host", "")) not in _HOSTS:
            return _refuse(403, "forbidden", "this API answers only to loopback host names", *_HOST)
        origin = request.headers.get("Origin")
        if origin is not None and _host_name(origin.partition("//")[2]) not in _HOSTS:
            return _refuse(403, "forbidden", "this API does not answer web pages", *_ORIGIN)
        if request.path not in _OPEN and not came_by_it(request):
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(_bytes(given), f"Bearer {token}".encode()):
                return _refuse(401, "unauthorized", "the bearer token is missing or wrong", *_TOKEN)
        return await handler(request)

    return check
