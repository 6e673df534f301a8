"""What comes in with a request to the local API, checked, and answers as JSON lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from kvswap.core.errors import KvswapError, UsageError
from kvswap.core.limits import LIMITS
from kvswap.cost import OBJECTIVES, Objective
from kvswap.exchange.request import Progress, Terms

Work = Callable[[Progress], Awaitable[dict[str, Any]]]


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request.  Raises `UsageError`."""
    try:
        body = json.loads(await request.read() or b"{}")
    except ValueError as error:
        raise UsageError("the request's body is not JSON") from error
    if not isinstance(body, dict):
        raise UsageError("the request's body is not a JSON object")
    return body


def text_of(body: dict[str, Any], name: str) -> str:
    """A field that has to be there.  Raises `UsageError`."""
    value = body.get(name)
    if not isinstance(value, str):
        raise UsageError(f"the request needs a text {name!r}")
    return value


def terms_of(body: dict[str, Any]) -> Terms:
    """What the caller accepts, minds, and will not pay.  Raises `UsageError`."""
    by = body.get("objective") or "mix"
    most = {name: body.get(name) for name in ("max_seconds", "max_dollars", "max_bytes")}
    if by not in OBJECTIVES:
        raise UsageError(f"objective is one of {', '.join(OBJECTIVES)}")
    for name, value in most.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise UsageError(f"{name} is a number that is not negative")
    objective = Objective(by, most["max_seconds"], most["max_dollars"], most["max_bytes"])
    force, tofu, inexact, strangers = (bool(body.get(name)) for name in ("force", "tofu", "inexact", "strangers"))
    return Terms(force, tofu, inexact, strangers, samples_of(body), optional_of(body, "group"), objective)


def samples_of(body: dict[str, Any]) -> int:
    """Positions to compute again.  Raises `UsageError`."""
    samples = body.get("samples", LIMITS.usual_samples)
    if isinstance(samples, bool) or not isinstance(samples, int) or not 1 <= samples <= LIMITS.audit_samples:
        raise UsageError(f"samples is a number from 1 to {LIMITS.audit_samples}")
    return samples


def optional_of(body: dict[str, Any], name: str) -> str | None:
    """A text, or None where the field is absent."""
    return text_of(body, name) if body.get(name) is not None else None


async def start_lines(request: web.Request) -> web.StreamResponse:
    """An answer of JSON lines, begun."""
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"})
    await response.prepare(request)
    return response


async def send_line(response: web.StreamResponse, value: dict[str, Any]) -> None:
    """One of them."""
    await response.write(json.dumps(value).encode() + b"\n")


async def stream(request: web.Request, work: Work) -> web.StreamResponse:
    """Run a use case and send its events as they come."""
    response = await start_lines(request)

    async def progress(event: dict[str, Any]) -> None:
        await send_line(response, event)

    try:
        await send_line(response, {"result": await work(progress)})
    except KvswapError as error:
        await send_line(response, {"error": error.to_dict()})
    except ConnectionResetError:
        return response  # the caller went away
    except asyncio.CancelledError:
        raise
    except Exception as error:
        failure = KvswapError(f"the daemon failed: {type(error).__name__}: {str(error)[:300]}")
        await send_line(response, {"error": failure.to_dict()})
        raise
    await response.write_eof()
    return response
