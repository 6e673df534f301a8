"""Gives each request to the local API an id, and logs what became of it.

The id goes with whatever the request starts on this node, into the log (`core.log`), and back in a header.  Of the
address only the route is logged: what stands in it may be a document's digest.
"""

from __future__ import annotations

import logging
import re
import secrets
import time

from aiohttp import web
from aiohttp.typedefs import Handler

from kvswap.core.log import REQUEST

HEADER = "Kvswap-Request"
_logger = logging.getLogger(__name__)
_ID = re.compile(r"[A-Za-z0-9-]{1,64}")


def request_id(given: str | None) -> str:
    """Return the id that a caller gave, where it is one, else a new one."""
    return given if given is not None and _ID.fullmatch(given) else secrets.token_hex(4)


async def put_header(request: web.Request, response: web.StreamResponse) -> None:
    """Put the id into an answer, before its head is sent."""
    if (name := request.get("request")) is not None:  # refused before it got one: no header
        response.headers[HEADER] = name


@web.middleware
async def trace(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Handle a request under its id; the outermost middleware.  Of reading little is logged: for debugging alone."""
    request["request"] = name = request_id(request.headers.get(HEADER))
    token, began = REQUEST.set(name), time.monotonic()
    status: int | str = "broke off"
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        resource = request.match_info.route.resource
        level = logging.DEBUG if request.method == "GET" else logging.INFO
        path = resource.canonical if resource is not None else "(no such path)"
        _logger.log(level, "%s %s %s, %.3f s", request.method, path, status, time.monotonic() - began)
        REQUEST.reset(token)
