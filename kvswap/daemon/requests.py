"""What comes in with a request to the local API, checked, and answers as JSON lines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from aiohttp import web

from kvswap.core.documents import check_unicode
from kvswap.core.errors import UsageError
from kvswap.core.failures import record, said
from kvswap.core.limits import LIMITS
from kvswap.cost import OBJECTIVES, Objective, PrefillCurve
from kvswap.exchange.model_port import Wanted
from kvswap.exchange.request import Progress, Terms

Work = Callable[[Progress], Awaitable[dict[str, Any]]]

HEARTBEAT = {"event": "heartbeat"}
HEARTBEAT_HEADER = "Kvswap-Heartbeat"  # seconds between them: a client may take silence of many for a frozen daemon
_ROWS_AT_ONCE = 500  # a millisecond or two of JSON
_MOST = 1e18  # of whatever is counted in a request
_HEARTBEAT_SECONDS = LIMITS.heartbeat_seconds


def wrong(message: str) -> UsageError:
    """The error of a request that is not of the API's form."""
    return UsageError(message, cause="a malformed request", hint="docs/extending.md, or kvswap VERB --help")


async def body_of(request: web.Request) -> dict[str, Any]:
    """The JSON object of a request.  Raises `UsageError`."""
    try:
        body = json.loads(await request.read() or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise wrong(f"the request's body is not JSON: {said(error)}") from error
    if not isinstance(body, dict):
        raise wrong("the request's body is not a JSON object")
    return body


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def text_of(body: dict[str, Any], name: str) -> str:
    """A field that has to be there, as Unicode text.  Raises `UsageError`."""
    value = body.get(name)
    if not isinstance(value, str):
        raise wrong(f"the request needs a text {name!r}")
    return check_unicode(value, name)


def number_of(body: dict[str, Any], name: str, low: float, high: float, *, whole: bool = False) -> float | int | None:
    """A finite number in its bounds, or None where the field is absent.  Raises `UsageError`."""
    value = body.get(name)
    if value is None:
        return None
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:  # NaN is in no bounds
        raise wrong(f"{name} is a {'whole ' if whole else ''}number from {low:.16g} to {high:.16g}")
    return value


def terms_of(body: dict[str, Any]) -> Terms:
    """What the caller accepts, minds, and will not pay.  Raises `UsageError`."""
    by = body.get("objective") or "mix"
    if not isinstance(by, str) or by not in OBJECTIVES:
        raise wrong(f"objective is one of {', '.join(OBJECTIVES)}")
    seconds, dollars, most = (number_of(body, name, 0, _MOST) for name in ("max_seconds", "max_dollars", "max_bytes"))
    objective = Objective(by, seconds, dollars, int(most) if most is not None else None)
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
    if isinstance(block_tokens, bool) or not isinstance(block_tokens, int):
        raise wrong("block_tokens is a number")
    if not 1 <= block_tokens <= LIMITS.block_tokens:
        raise wrong(f"block_tokens is a number from 1 to {LIMITS.block_tokens}")
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
        fitted = PrefillCurve(_finite(curve[0]), _finite(curve[1]), block_tokens) if curve is not None else None
        wait = _finite(seconds) if seconds is not None else None
    except UsageError:
        raise
    except (TypeError, ValueError, LookupError, OverflowError, struct.error) as error:
        raise wrong("a beginning is asked for by ids or chain, model, dtype and block_tokens") from error
    if any(len(d) != 32 for d in (*digests, wanted.model)):
        raise wrong("chain and model are digests of 32 bytes")
    terms = replace(terms_of(body), curve=fitted, lookup_seconds=wait, local=bool(body.get("local")))
    return Asked(wanted, digests, block_tokens, terms, ids if body.get("parts") else None)


def samples_of(body: dict[str, Any]) -> int:
    """Positions to compute again.  Raises `UsageError`."""
    samples = number_of(body, "samples", 1, LIMITS.audit_samples, whole=True)
    return LIMITS.usual_samples if samples is None else int(samples)


def _finite(value: Any) -> float:
    number = float(value)
    if not 0 <= number <= _MOST:
        raise ValueError("out of bounds")
    return number


def optional_of(body: dict[str, Any], name: str) -> str | None:
    """A text, or None where the field is absent."""
    return text_of(body, name) if body.get(name) is not None else None


async def start_lines(request: web.Request) -> web.StreamResponse:
    """An answer of JSON lines, begun."""
    beats = {HEARTBEAT_HEADER: f"{LIMITS.heartbeat_seconds:g}"}
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "Cache-Control": "no-store"} | beats)
    await response.prepare(request)
    return response


async def send_line(response: web.StreamResponse, value: dict[str, Any]) -> None:
    """Send one JSON value as a line."""
    await response.write(json.dumps(value).encode() + b"\n")


async def send_rows(request: web.Request, name: str, pages: Iterable[Sequence[Any]]) -> web.StreamResponse:
    """Answer `{name: [row, ...]}`, made and sent a few rows at a time.

    Of many rows the text is as long as to keep the loop for half a second, were it made at once.  `pages` are taken in
    a thread; an error of the first is answered as one, a later one ends the connection.
    """
    rows = iter(pages)
    page = await asyncio.to_thread(next, rows, None)
    if page is not None and len(page) <= _ROWS_AT_ONCE:
        after = await asyncio.to_thread(next, rows, None)
        if after is None:
            return web.json_response({name: list(page)})
        pages = itertools.chain((page, after), rows)
    else:
        pages = itertools.chain(() if page is None else (page,), rows)
    texts = _texts(name, pages)
    response = web.StreamResponse(headers={"Content-Type": "application/json; charset=utf-8"})
    await response.prepare(request)
    while (text := await asyncio.to_thread(next, texts, None)) is not None:
        await response.write(text)
    await response.write_eof()
    return response


def _texts(name: str, pages: Iterable[Sequence[Any]]) -> Iterator[bytes]:
    """The text of an object with one list, in pieces."""
    yield b"{%s: [" % json.dumps(name).encode()
    between = b""
    for page in pages:
        for start in range(0, len(page), _ROWS_AT_ONCE):
            yield between + msgspec.json.encode(page[start : start + _ROWS_AT_ONCE])[1:-1]
            between = b", "
    yield b"]}"


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


class _CallerGone(Exception):
    """The connection to who asked ended: there is nobody to tell."""


async def stream(request: web.Request, work: Work) -> web.StreamResponse:
    """Run a use case and send its events as they come, with heartbeats between them; at last a result or an error."""
    response = await start_lines(request)

    async def say(value: dict[str, Any]) -> None:
        try:
            await send_line(response, value)
        except ConnectionError as error:  # of this connection, and not of one that the work has
            raise _CallerGone from error

    try:
        try:
            async with heartbeats(response):
                done = await work(say)
            await say({"result": done})
        except _CallerGone:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of a request: told, and in the log
            await say({"error": record(error, f"{request.method} {request.path}").to_dict()})
        await response.write_eof()
    except (_CallerGone, ConnectionError):
        pass
    return response
