"""HTTP to what a serving engine beside this node wants: the longest prefix of a prompt, and publishing one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Any

from aiohttp import web

from kvswap.api import PrefixRequest, RenderRequest
from kvswap.api.caches import ComputedResult, PrefixIndex, PrefixResult
from kvswap.api.chat import RenderResult
from kvswap.api.plans import summary_of
from kvswap.artifact.manifest import DocumentRef, EngineProbe, ModelIdentity, Numerics
from kvswap.core import wire
from kvswap.core.errors import MalformedManifest, MalformedMessage, NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.daemon.requests import prefix_query_of, reply, request_of, stream
from kvswap.exchange import Node
from kvswap.exchange.discovery.pulling import cached_prefix_keys
from kvswap.exchange.model_port import OnEvent
from kvswap.exchange.prefix import fetch_prefix, longest_cached_prefix
from kvswap.exchange.publish_computed import Computed, publish_computed
from kvswap.exchange.render import render
from kvswap.exchange.request import Progress
from kvswap.worker import protocol
from kvswap.worker.conversation import ChunkEvent, FingerprintEvent, job_event
from kvswap.worker.messages import EngineComputed


class EngineApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """List what is answered here."""
        return [
            web.post("/v1/beginning", self.cached_prefix),
            web.get("/v1/beginnings", self.prefix_index),
            web.post("/v1/computed", self.computed),
            web.post("/v1/render", self.render),
        ]

    async def cached_prefix(self, request: web.Request) -> web.StreamResponse:
        """Fetch the longest published prefix of a document, given by its ids or their chain digests."""
        asked = prefix_query_of(await request_of(request, PrefixRequest))

        async def work(progress: Progress) -> PrefixResult:
            found = await longest_cached_prefix(
                self._node, asked.wanted, asked.chain, asked.block_tokens, asked.terms, asked.ids
            )
            if found is None:
                raise NotFound("nobody offers a document with the same prefix")
            chosen = await fetch_prefix(self._node, found, asked.terms, progress)
            return PrefixResult(
                artifact=str(found.statement.artifact),
                tokens=found.tokens,
                whole=found.tokens == found.statement.manifest.prefix.tokens,
                plan=summary_of(chosen),
            )

        return await stream(request, work)

    async def prefix_index(self, request: web.Request) -> web.Response:
        """Return keys of all that `cached_prefix` could find, once these are not `?version=`, or after `?wait=`."""
        try:
            wait = float(request.query.get("wait", "0"))
        except ValueError:
            raise UsageError("wait is a number of seconds") from None
        if not 0 <= wait <= LIMITS.api_seconds:
            raise UsageError(f"wait is a number from 0 to {LIMITS.api_seconds:g}")
        version, keys = await cached_prefix_keys(self._node, request.query.get("version", ""), wait)
        packed = base64.b64encode(keys).decode() if keys is not None else None
        return reply(PrefixIndex(version=version, packed=packed))

    async def render(self, request: web.Request) -> web.StreamResponse:
        """Write a conversation by a model's chat template."""
        asked = await request_of(request, RenderRequest)

        async def work(progress: Progress) -> RenderResult:
            return await render(self._node, asked)

        return await stream(request, work)

    async def computed(self, request: web.Request) -> web.StreamResponse:
        """Publish what an engine computed.

        The body is frames as between node and model process: what it is about, events, and one `result`.
        """
        frames = FrameReader(request.content)

        async def run(on_event: OnEvent) -> EngineComputed:
            while "event" in (message := await frames.next()):
                event = job_event(message, MalformedMessage)
                if isinstance(event, ChunkEvent | FingerprintEvent):  # there is nothing else that an engine tells
                    await on_event(event)
            if not isinstance(result := message.get("result"), dict):
                raise MalformedMessage("the frames end without a result")
            return wire.convert(result, EngineComputed, MalformedMessage)

        async def work(progress: Progress) -> ComputedResult:
            try:
                return await publish_computed(self._node, computed_of(await frames.next()), run, progress)
            except (MalformedMessage, MalformedManifest) as error:  # of who asks, and of no peer
                raise _wrong(error.message) from error
            finally:
                with contextlib.suppress(TimeoutError, ConnectionError, web.HTTPException, web.RequestPayloadError):
                    await frames.drain()

        return await stream(request, work)


def _wrong(what: str) -> UsageError:
    return UsageError(
        f"what an engine publishes cannot be used: {what}",
        cause="the engine stopped in the middle, or is of another version of kvswap",
        hint="kvswap --version, in the engine's environment and here",
    )


class FrameReader:
    """A reader of the frames of a request's body, each under its cap, and in time."""

    def __init__(self, content: Any) -> None:
        self._content = content

    async def next(self) -> dict[str, Any]:
        """Read the next frame.  Raises `MalformedMessage` where there is none."""
        try:
            async with asyncio.timeout(LIMITS.chunk_seconds):
                length = protocol.check_length(await self._content.readexactly(protocol.HEADER.size))
                data = await self._content.readexactly(length)
        except (TimeoutError, asyncio.IncompleteReadError, web.RequestPayloadError) as error:
            raise MalformedMessage("a frame is missing") from error
        value = await asyncio.to_thread(wire.parse, data, MalformedMessage, items=LIMITS.pipe_items)
        if not isinstance(value, dict):
            raise MalformedMessage("a frame is not a map")
        return value

    async def drain(self) -> None:
        """Read what was sent in vain, so that the sender gets to reading its answer."""
        async with asyncio.timeout(LIMITS.chunk_seconds):
            async for _ in self._content.iter_chunked(1 << 20):
                pass


def _predictor(given: Any) -> bytes | None:
    """Check the size of a predictor that an engine sent.  Raises `ValueError` for what cannot be one."""
    if given is not None and (not isinstance(given, bytes) or not 0 < len(given) <= LIMITS.predictor_bytes):
        raise ValueError("a predictor is bytes under the cap")
    return given


def computed_of(head: dict[str, Any]) -> Computed:
    """Read the first frame, which says what was computed.  Raises `UsageError`."""
    try:
        ids = tuple(int(i) for i in head["ids"])
        block_tokens, group = int(head["block_tokens"]), head.get("group")
        made = Computed(
            model=wire.convert(head["model"], ModelIdentity),
            dtype=str(head["dtype"]),
            ids=ids,
            block_tokens=block_tokens,
            numerics=wire.convert(head["numerics"], Numerics),
            group=str(group) if group is not None else None,
            compare=bool(head.get("compare", True)),
            document=wire.convert(given, DocumentRef) if (given := head.get("document")) is not None else None,
            predictor=_predictor(head.get("predictor")),
            engine=wire.convert(probe, EngineProbe) if (probe := head.get("engine")) is not None else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _wrong("it begins with model, dtype, ids, block_tokens and numerics") from error
    if not 1 <= block_tokens <= LIMITS.block_tokens:
        raise _wrong(f"block_tokens is a number from 1 to {LIMITS.block_tokens}")
    if not ids or not all(0 <= i < 1 << 32 for i in ids) or len(ids) > LIMITS.manifest_blocks * block_tokens:
        raise _wrong("ids are a document's token ids")
    return made
