"""What comes in with a request to the local API, checked, and answers as JSON lines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from kvswap.core.errors import KvswapError, UsageError
from kvswap.core.limits import LIMITS
from kvswap.cost import OBJECTIVES, Objective, PrefillCurve
from kvswap.exchange.request import Progress, Terms
from kvswap.exchange.resolve import Wanted

Work = Callable[[Progress], Awaitable[dict[str, Any]]]

HEARTBEAT = {"event": "heartbeat"}
_HEARTBEAT_SECONDS = LIMITS.heartbeat_seconds


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


@dataclass(frozen=True, slots=True)
class Asked:
    """A document whose published beginning is wanted; `ids` only where a part of a block is of use."""

    wanted: Wanted
    chain: list[bytes]
    block_tokens: int
    terms: Terms
    ids: Sequence[int] | None


def beginning_of(body: dict[str, Any]) -> Asked:
    """By `ids` (u32, little endian, in base64) or `chain` (digests in hex), with model, dtype and block size.

    `parts`: a document that ends within a block is of use to its end.  `curve`: what a block costs to prefill who
    asks, and each token before it.  `seconds`: the longest to wait for peers; `local`: ask none.  Raises `UsageError`.
    """
    from kvswap.artifact.chain import chain_digests  # numpy, which most requests have no use for

    ids: list[int] | None = None
    chain, block_tokens = body.get("chain"), body.get("block_tokens")
    curve, seconds = body.get("curve"), body.get("seconds")
    if not isinstance(block_tokens, int) or not 1 <= block_tokens <= LIMITS.block_tokens:
        raise UsageError(f"block_tokens is a number from 1 to {LIMITS.block_tokens}")
    try:
        wanted = Wanted(bytes.fromhex(text_of(body, "model")), text_of(body, "dtype"))
        if "ids" in body:
            packed = base64.b64decode(text_of(body, "ids"), validate=True)
            ids = [i for (i,) in struct.iter_unpack("<I", packed)]
            if not body.get("parts"):
                ids = ids[: len(ids) // block_tokens * block_tokens]
            digests = chain_digests(wanted.model, ids, block_tokens)
        else:
            digests = [bytes.fromhex(d) for d in chain] if isinstance(chain, list) else []
        fitted = PrefillCurve(float(curve[0]), float(curve[1]), block_tokens) if curve is not None else None
        wait = float(seconds) if seconds is not None else None
    except (TypeError, ValueError, LookupError, struct.error) as error:
        raise UsageError("a beginning is asked for by ids or chain, model, dtype and block_tokens") from error
    if any(len(d) != 32 for d in (*digests, wanted.model)):
        raise UsageError("chain and model are digests of 32 bytes")
    terms = replace(terms_of(body), curve=fitted, lookup_seconds=wait, local=bool(body.get("local")))
    return Asked(wanted, digests, block_tokens, terms, ids if body.get("parts") else None)


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


@contextlib.asynccontextmanager
async def heartbeats(response: web.StreamResponse, wanted: bool = True) -> AsyncIterator[None]:
    """Send a line every few seconds while this is open: it carries nothing, but says that the daemon lives.

    A client that hears none for many times as long may take the daemon for frozen, however long the work takes.
    """

    async def beat() -> None:
        with contextlib.suppress(ConnectionError):  # the caller went away: whoever works for it is told
            while True:
                await asyncio.sleep(_HEARTBEAT_SECONDS)
                await send_line(response, HEARTBEAT)

    if not wanted:
        yield
        return
    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.wait([beating])


async def stream(request: web.Request, work: Work) -> web.StreamResponse:
    """Run a use case and send its events as they come, with heartbeats between them."""
    response = await start_lines(request)

    async def progress(event: dict[str, Any]) -> None:
        await send_line(response, event)

    try:
        async with heartbeats(response):
            done = await work(progress)
        await send_line(response, {"result": done})
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
