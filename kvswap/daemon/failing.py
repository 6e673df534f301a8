"""Where an exception becomes a response of the local API: JSON, with the status, cause and hint of our errors."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from kvswap.core.errors import KvswapError, NotFound, UsageError
from kvswap.core.failures import record


def response_of(error: KvswapError, status: int | None = None) -> web.Response:
    """The error as a JSON response."""
    return web.json_response({"error": error.to_dict()}, status=status or error.http_status)


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The one place where an exception becomes a response; the outermost middleware."""
    try:
        return await handler(request)
    except KvswapError as error:
        record(error)
        return response_of(error)
    except web.HTTPException as error:  # of aiohttp's own: no such path, method, or too large a body
        return response_of(_of_http(request, error), error.status)
    except Exception as error:
        if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
            raise  # the caller went away: nobody to answer
        return response_of(record(error, f"{request.method} {request.path}"))


def _of_http(request: web.Request, error: web.HTTPException) -> KvswapError:
    what = f"{request.method} {request.path}"
    if error.status in (404, 405):
        kind = NotFound if error.status == 404 else UsageError
        return kind(
            f"this API has no {what}", cause="client and daemon are of two versions", hint="kvswap --version; restart"
        )
    if error.status == 413:
        return UsageError(
            "the request's body is too large", cause="no model of today reads so much at once", hint="split it"
        )
    return UsageError(f"{what}: {error.reason}", cause="a malformed request", hint="docs/extending.md")
