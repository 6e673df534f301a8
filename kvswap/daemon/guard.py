"""Who may call the local API.

Loopback alone protects nobody: any page in a browser can reach it by DNS rebinding (Ollama
GHSA-5jx5-hqx5-2vrj, Transmission CVE-2018-5702).  So every request needs a `Host` that names this
machine's loopback, no foreign `Origin`, and - but for the health checks - the bearer token of the
run-file, compared in constant time.
"""

from __future__ import annotations

import hmac

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

__all__ = ["Handler", "guard"]

_OPEN = frozenset({"/healthz", "/readyz"})
_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})


def _host_name(value: str) -> str:
    name, separator, port = value.rpartition(":")
    return name if separator and port.isdigit() else value


def _refuse(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"code": code, "message": message}}, status=status)


def guard(token: str) -> Middleware:
    """The middleware, first in line."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _host_name(request.headers.get("Host", "")) not in _HOSTS:
            return _refuse(403, "forbidden", "this API answers only to loopback host names")
        origin = request.headers.get("Origin")
        if origin is not None and _host_name(origin.partition("//")[2]) not in _HOSTS:
            return _refuse(403, "forbidden", "this API does not answer web pages")
        if request.path not in _OPEN:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return _refuse(401, "unauthorized", "the bearer token is missing or wrong")
        return await handler(request)

    return check
