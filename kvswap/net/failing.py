"""Exceptions as responses of the HTTP servers: JSON with the status, cause and hint of the package's errors."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler

from kvswap.core.errors import KvswapError, NotFound, QuotaExceeded, Unexpected, UsageError
from kvswap.core.failures import brief, is_own, record


def response_of(error: KvswapError, status: int | None = None) -> web.Response:
    """Return an error as a JSON response, with `Retry-After` if the caller should try again later."""
    again = error.details.get("retry_after", 1 if isinstance(error, QuotaExceeded) else None)
    headers = {"Retry-After": str(int(again) + 1)} if isinstance(again, int | float) else None
    return web.json_response({"error": error.to_dict()}, status=status or error.http_status, headers=headers)


async def _expected(request: web.Request) -> web.Response | None:
    """Handle the header `Expect`, which aiohttp checks before any middleware."""
    expect = request.headers.get("Expect", "")
    if request.version < (1, 1):
        return None
    if expect.lower() != "100-continue":
        failure = UsageError("the header Expect has an unknown value", cause="a malformed request", hint="leave it out")
        return response_of(failure, web.HTTPExpectationFailed.status_code)
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the body has not begun
    return None


def answering(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    """Return the routes with a handler of the header `Expect`, so that its refusal is JSON as well.

    aiohttp checks that header before any middleware runs.
    """
    return [web.RouteDef(r.method, r.path, r.handler, r.kwargs | {"expect_handler": _expected}) for r in routes]


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception of a handler into a JSON response.  This has to be the outermost middleware."""
    try:
        return await handler(request)
    except web.HTTPException as error:  # raised by aiohttp: no such path or method, or too large a body
        return response_of(_of_http(request, error), error.status)
    except web.RequestPayloadError as error:
        return response_of(_of_payload(request, error))
    except Exception as error:
        if isinstance(error, ConnectionError) and (request.transport is None or request.transport.is_closing()):
            raise  # the caller went away: nobody to answer
        return response_of(record(error, f"{request.method} {request.path}"))


@web.middleware
async def errors_for_guests(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception of a handler into a JSON response that shows remote callers no details of internal faults.

    It is `errors` for callers who are not users of this machine.
    """
    try:
        return await handler(request)
    except web.HTTPException as error:
        return response_of(_of_http(request, error), error.status)
    except web.RequestPayloadError as error:
        return response_of(_of_payload(request, error))
    except ConnectionError:
        raise  # the guest went away, or reads nothing of what has begun
    except Exception as error:  # noqa: BLE001 - it is answered, and logged
        return response_of(for_guests(error, f"{request.method} {request.path}"))


def for_guests(error: Exception, doing: str) -> KvswapError:
    """Log an error, and return it in the form that a remote caller may see: internal faults without details."""
    failure = record(error, doing)
    if not is_own(error) or isinstance(failure, UsageError):  # a fault of the request, not of this machine
        return failure
    return Unexpected("this host failed at the request", cause="a fault on its side", hint="ask again later")


def _of_payload(request: web.Request, error: Exception) -> KvswapError:
    return UsageError(
        f"the body of {request.method} {request.path} cannot be read: {brief(error)}",
        cause="it is not in the encoding that its header names, or was cut off",
        hint="send JSON as it is, without Content-Encoding",
    )


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
