"""What comes in with a request to the local API, checked, and answers as JSON lines."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import structs

from kvswap.api import PrefixRequest, Request
from kvswap.api.events import ProgressEvent
from kvswap.api.result import Result, plain
from kvswap.core.documents import check_unicode
from kvswap.core.errors import UsageError
from kvswap.core.failures import brief, record
from kvswap.core.limits import LIMITS
from kvswap.cost import PrefillCurve
from kvswap.daemon.running import RUNNING, Running
from kvswap.exchange.model_port import Wanted
from kvswap.exchange.request import LookupTerms, Progress, lookup_of
from kvswap.store.tables import ROWS_AT_ONCE

R = TypeVar("R", bound=Request)
Work = Callable[[Progress], Awaitable[Result]]

HEARTBEAT = {"event": "heartbeat"}
NDJSON = "application/x-ndjson"
HEARTBEAT_HEADER = "Kvswap-Heartbeat"  # seconds between them: a client may take silence of many for a frozen daemon
_JSON = "application/json; charset=utf-8"
_PIECE_BYTES = 1 << 18
_HEARTBEAT_SECONDS = LIMITS.heartbeat_seconds


def wrong(message: str) -> UsageError:
    """Make the error of a request that is not of the API's form."""
    return UsageError(message, cause="a malformed request", hint="docs/extending.md, or kvswap VERB --help")


async def body_of(request: web.Request) -> dict[str, Any]:
    """Read the JSON object of a request.  Raises `UsageError`."""
    try:
        body = json.loads(await request.read() or b"{}", parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise wrong(f"the request's body is not JSON: {brief(error)}") from error
    if not isinstance(body, dict):
        raise wrong("the request's body is not a JSON object")
    return body


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def parse(body: dict[str, Any], kind: type[R]) -> R:
    """Convert a JSON object into a request of this kind.  Raises `UsageError` naming the field that is wrong.

    Null means that a field is absent.  0 and 1 stand for false and true, as they did before there were structs.
    """
    specs = structs.fields(kind)
    strict = {spec.encode_name for spec in specs if spec.default is msgspec.UNSET}  # there null is no value
    given = {name: value for name, value in body.items() if value is not None or name in strict}
    for spec in specs:
        value = given.get(spec.encode_name)
        if isinstance(value, str):
            check_unicode(value, spec.encode_name)
        elif spec.type is bool and type(value) is int and value in (0, 1):
            given[spec.encode_name] = bool(value)
    try:
        return msgspec.convert(given, kind)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise wrong(f"the request's body is of another form: {error}") from error


async def request_of(request: web.Request, kind: type[R]) -> R:
    """Read the body of a request as one of this kind.  Raises `UsageError`."""
    return parse(await body_of(request), kind)


@dataclass(frozen=True, slots=True)
class PrefixQuery:
    """A document whose published prefix is wanted; `ids` only where a part of a block is of use."""

    wanted: Wanted
    chain: list[bytes]
    block_tokens: int
    terms: LookupTerms
    ids: Sequence[int] | None


def prefix_query_of(request: PrefixRequest) -> PrefixQuery:
    """Unpack what stands for bytes in a request for a prefix.  Raises `UsageError`."""
    from kvswap.artifact.chain import chain_digests  # numpy, which most requests have no use for

    ids: list[int] | None = None
    block_tokens, curve = request.block_tokens, request.curve
    try:
        wanted = Wanted(bytes.fromhex(request.model), request.dtype)
        if isinstance(request.ids, str):
            packed = base64.b64decode(request.ids, validate=True)
            ids = [i for (i,) in struct.iter_unpack("<I", packed)]
            if not request.parts:
                ids = ids[: len(ids) // block_tokens * block_tokens]
            digests = chain_digests(wanted.model, ids, block_tokens)
        else:
            digests = [bytes.fromhex(d) for d in request.chain or []]
    except (ValueError, struct.error) as error:
        raise wrong("a prefix is asked for by ids or chain, model, dtype and block_tokens") from error
    if any(len(d) != 32 for d in (*digests, wanted.model)):
        raise wrong("chain and model are digests of 32 bytes")
    fitted = PrefillCurve(*curve, block_tokens) if curve is not None else None
    terms = lookup_of(request, curve=fitted, lookup_seconds=request.seconds, local=request.local)
    return PrefixQuery(wanted, digests, block_tokens, terms, ids if request.parts else None)


async def start_lines(request: web.Request) -> web.StreamResponse:
    """Start an answer of JSON lines."""
    beats = {HEARTBEAT_HEADER: f"{LIMITS.heartbeat_seconds:g}"}
    response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"} | beats)
    await response.prepare(request)
    return response


async def send_line(response: web.StreamResponse, value: dict[str, Any]) -> None:
    """Send one JSON value as a line."""
    await response.write(json.dumps(value).encode() + b"\n")


def reply(result: Result) -> web.Response:
    """Answer with one result."""
    return web.json_response(result.to_json())


async def send_rows(request: web.Request, name: str, pages: Iterable[Sequence[Result]]) -> web.StreamResponse:
    """Answer `{name: [row, ...]}` of results, made and sent a few rows at a time.

    Of many rows the text is as long as to keep the loop for half a second, were it made at once.  `pages` are taken in
    a thread; an error of the first is answered as one, a later one ends the connection.  Who accepts JSON lines gets
    many rows as such, a list in each, and can read the first while the others are made.
    """
    lines = NDJSON in request.headers.get("Accept", "")
    rows = iter(pages)
    page = await asyncio.to_thread(next, rows, None)
    if page is not None and len(page) <= ROWS_AT_ONCE:
        after = await asyncio.to_thread(next, rows, None)
        if after is None:
            return web.json_response({name: plain(list(page))})
        pages = itertools.chain((page, after), rows)
    else:
        pages = itertools.chain(() if page is None else (page,), rows)
    return await _send_texts(request, _lines(pages) if lines else _texts(name, pages), NDJSON if lines else _JSON)


async def send_long(request: web.Request, value: dict[str, Any]) -> web.StreamResponse:
    """Answer with one JSON object whose lists may be long, made and sent a piece at a time."""
    texts = _gathered(_pieces(value))
    first = await asyncio.to_thread(next, texts)
    if (second := await asyncio.to_thread(next, texts, None)) is None:
        return web.Response(body=first, headers={"Content-Type": _JSON})
    return await _send_texts(request, itertools.chain((first, second), texts), _JSON)


async def _send_texts(request: web.Request, texts: Iterator[bytes], kind: str) -> web.StreamResponse:
    """Answer with texts that are made in a thread, each when the one before was sent."""
    response = web.StreamResponse(headers={"Content-Type": kind})
    await response.prepare(request)
    while (text := await asyncio.to_thread(next, texts, None)) is not None:
        await response.write(text)
    await response.write_eof()
    return response


def _pieces(value: Any) -> Iterator[str]:
    """Yield the text of a JSON value, long lists a few elements at a time.

    Making a text keeps all threads: no call may make a long one.
    """
    if isinstance(value, dict) and value:
        between = "{"
        for name, one in value.items():
            yield f"{between}{json.dumps(name)}: "
            yield from _pieces(one)
            between = ", "
        yield "}"
    elif isinstance(value, list | tuple) and len(value) > ROWS_AT_ONCE:
        between = "["
        for start in range(0, len(value), ROWS_AT_ONCE):
            yield between + json.dumps(value[start : start + ROWS_AT_ONCE])[1:-1]
            between = ", "
        yield "]"
    else:
        yield json.dumps(value)


def _gathered(texts: Iterable[str]) -> Iterator[bytes]:
    """Yield texts in pieces that are worth sending."""
    waiting, length = [], 0
    for text in texts:
        waiting.append(text)
        length += len(text)
        if length >= _PIECE_BYTES:
            yield "".join(waiting).encode()
            waiting, length = [], 0
    if waiting:
        yield "".join(waiting).encode()


def _lines(pages: Iterable[Sequence[Result]]) -> Iterator[bytes]:
    """Yield the rows as JSON lines, each a list."""
    for page in pages:
        for start in range(0, len(page), ROWS_AT_ONCE):
            yield msgspec.json.encode(page[start : start + ROWS_AT_ONCE]) + b"\n"


def _texts(name: str, pages: Iterable[Sequence[Result]]) -> Iterator[bytes]:
    """Yield the text of an object with one list, in pieces."""
    yield b"{%s: [" % json.dumps(name).encode()
    between = b""
    for page in pages:
        for start in range(0, len(page), ROWS_AT_ONCE):
            yield between + msgspec.json.encode(page[start : start + ROWS_AT_ONCE])[1:-1]
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


def _verb(request: web.Request) -> str:
    """Name what a request is about in a word: the last fixed part of its route."""
    resource = request.match_info.route.resource
    parts = resource.canonical.split("/") if resource is not None else [""]
    return [part for part in parts if not part.startswith("{")][-1]


async def stream(request: web.Request, work: Work) -> web.StreamResponse:
    """Run a use case and send its events as they come, with heartbeats between them; at last a result or an error."""
    response = await start_lines(request)

    async def send(value: dict[str, Any]) -> None:
        try:
            await send_line(response, value)
        except ConnectionError as error:  # of this connection, and not of one that the work has
            raise _CallerGone from error

    running = request.config_dict.get(RUNNING) or Running()
    state = running.begin(_verb(request))

    async def report(event: ProgressEvent) -> None:
        state.note(event)
        await send(event.to_json())

    async def follow() -> Result:
        try:
            done = await work(report)
        except BaseException as error:
            running.end(state, error)
            raise
        running.end(state)
        return done

    try:
        try:
            async with heartbeats(response):
                done = await follow()
            await send({"result": done.to_json()})
        except _CallerGone:
            raise
        except Exception as error:  # noqa: BLE001 - the boundary of a request: told, and in the log
            await send({"error": record(error, f"{request.method} {request.path}").to_dict()})
        await response.write_eof()
    except (_CallerGone, ConnectionError):
        pass
    return response
