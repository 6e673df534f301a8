"""The asyncio client, on aiohttp.  Method for method the blocking one (tested for parity)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

from kvswap.client import calls
from kvswap.client.answers import (
    HEADER,
    HEARTBEAT,
    error_of,
    message_of,
    not_ours,
    result_of,
    silence_seconds,
    silent,
    went_away,
)
from kvswap.client.calls import Accept, Call
from kvswap.client.values import AsyncArtifact, model_argument, report
from kvswap.core.documents import check_text
from kvswap.core.errors import (
    Incompatible,
    IntegrityError,
    KvswapError,
    NotFound,
    PeerError,
    PlanSaysPrefill,
    Untrusted,
)
from kvswap.core.failures import as_kvswap_error
from kvswap.core.ids import document_digest
from kvswap.core.limits import LIMITS
from kvswap.core.places import home_directory
from kvswap.core.runfile import RunFile, not_running
from kvswap.cost import MIX, Objective

OnEvent = Callable[[dict[str, Any]], None]


async def _pieces(frames: calls.Frames) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame


class AsyncClient:
    """See `kvswap.client.sync.Client`; every verb is a coroutine."""

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = home_directory(str(home) if home is not None else None)

    async def _lines(self, call: Call) -> AsyncGenerator[dict[str, Any], None]:
        """The messages of an answer; of one that is no answer of lines, the whole as a result."""
        import aiohttp

        run = RunFile.read(self.home)
        frames = calls.Frames(call.frames) if call.frames is not None else None
        body: dict[str, Any] = {"json": call.body} if frames is None else {"data": _pieces(frames)}
        # Between lines this task waits itself, by the heartbeats that the head of the answer promises.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=calls.SHORT_SECONDS)
        headers = {"Authorization": f"Bearer {run.token}"}
        waits = call.head_seconds
        try:
            async with aiohttp.ClientSession(timeout=timeout, headers=headers, read_bufsize=1 << 20) as session:
                async with asyncio.timeout(waits):
                    response = await session.request(call.method, run.url + call.path, **body)
                async with response:
                    if response.status != 200 or not call.lines:
                        async with asyncio.timeout(waits):
                            message = message_of(await response.read(), self.home)
                        if response.status != 200:
                            raise error_of(message, response.status)
                        yield {"result": message}
                        return
                    waits = silence_seconds(call, response.headers.get(HEADER))
                    while True:
                        async with asyncio.timeout(waits):
                            line = await response.content.readline()
                        if not line:
                            return
                        message = message_of(line, self.home)
                        if message.get("event") != HEARTBEAT:
                            yield message
        except KvswapError:
            raise
        except (OSError, aiohttp.ClientError) as error:  # what a callback of the caller's raises is not seen here
            if frames is not None and frames.error is not None:
                raise frames.error from None
            raise self._told(error, waits) from error

    def _told(self, error: Exception, waited: float) -> KvswapError:
        import aiohttp

        if isinstance(error, aiohttp.ClientConnectorError):
            return not_running(self.home)
        if isinstance(error, TimeoutError):
            return silent(self.home, waited)
        if isinstance(error, aiohttp.ClientResponseError | aiohttp.InvalidURL):  # nothing that speaks HTTP
            return not_ours(self.home)
        if isinstance(error, ConnectionError | aiohttp.ClientError):
            return went_away(error)
        return as_kvswap_error(error, "calling the daemon")

    async def _do(self, call: Call, on_event: OnEvent | None = None) -> dict[str, Any]:
        async with contextlib.aclosing(self._lines(call)) as messages:
            async for message in messages:
                if "event" not in message:
                    return result_of(message, self.home)
                if on_event is not None:
                    on_event(message)
        raise went_away()

    async def status(self) -> dict[str, Any]:
        return await self._do(calls.status())

    async def identity(self) -> dict[str, Any]:
        return await self._do(calls.identity())

    async def peers(self) -> list[dict[str, Any]]:
        return list((await self._do(calls.peers()))["peers"])

    async def block(self, peer: str, blocked: bool = True) -> dict[str, Any]:
        """Neither serve nor ask a peer; or, with `blocked` false, do so again."""
        return await self._do(calls.block(peer, blocked))

    async def artifacts(self) -> list[dict[str, Any]]:
        return list((await self._do(calls.artifacts()))["artifacts"])

    async def show(self, ref: str) -> dict[str, Any]:
        return await self._do(calls.show(ref))

    async def details(self, ref: str) -> dict[str, Any]:
        return await self._do(calls.show(ref, key=True))

    async def publish(
        self,
        text: str,
        *,
        model: str | None = None,
        codec: str | None = None,
        truncate: bool = False,
        source: str | None = None,
        group: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        return await self._do(calls.publish(text, model_argument(model), codec, truncate, source, group), on_event)

    async def train(
        self, corpus: str, *, model: str | None = None, tokens: int = 40_000, on_event: OnEvent | None = None
    ) -> dict[str, Any]:
        return await self._do(calls.train(str(Path(corpus).absolute()), model_argument(model), tokens), on_event)

    async def fetch(
        self,
        ref: str,
        *,
        force: bool = False,
        tofu: bool = False,
        inexact: bool = False,
        strangers: bool = False,
        samples: int = LIMITS.usual_samples,
        group: str | None = None,
        text: str | None = None,
        objective: Objective = MIX,
        on_event: OnEvent | None = None,
    ) -> AsyncArtifact:
        report = await self._do(
            calls.fetch(ref, text, Accept(force, tofu, inexact, strangers, samples, group), objective), on_event
        )
        return AsyncArtifact(report["artifact"], report, lambda: self.details(report["artifact"]))

    async def plan(
        self,
        ref: str,
        *,
        text: str | None = None,
        inexact: bool = False,
        group: str | None = None,
        host: str | None = None,
        objective: Objective = MIX,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        return await self._do(calls.plan(ref, text, inexact, group, objective, host), on_event)

    async def verify(
        self,
        ref: str | None = None,
        *,
        store: bool = False,
        level: int | None = None,
        samples: int = LIMITS.usual_samples,
        text: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        return await self._do(calls.verify(ref, store, level, samples, text), on_event)

    async def withdraw(self, ref: str, why: str = "") -> dict[str, Any]:
        return await self._do(calls.withdraw(ref, why))

    async def groups(self) -> list[dict[str, Any]]:
        """The groups this node is in: `{"name", "mark"}`, no secrets."""
        return list((await self._do(calls.groups()))["groups"])

    async def group_new(self, name: str) -> dict[str, Any]:
        """A group with a key of its own; who is given the key is a member."""
        return await self._do(calls.group_add(name, None))

    async def group_import(self, key: str, name: str | None = None) -> dict[str, Any]:
        """Join the group of this key, which `group_export` of another member gave."""
        return await self._do(calls.group_add(name, key))

    async def group_export(self, name: str) -> dict[str, Any]:
        """`{"name", "key"}`: a secret."""
        return await self._do(calls.group_export(name))

    async def group_remove(self, name: str) -> dict[str, Any]:
        """Forget a group's key."""
        return await self._do(calls.group_remove(name))

    async def hosts(self) -> list[dict[str, Any]]:
        """The hosts that invited this node, each with its offer or its `problem`."""
        return list((await self._do(calls.hosts()))["hosts"])

    async def host_join(self, invitation: str, *, plain: bool = False) -> dict[str, Any]:
        """Accept the invitation of a host, as `kvswap host invite` printed it; `plain`: also one over http."""
        return await self._do(calls.host_join(invitation, plain=plain))

    async def host_leave(self, peer: str) -> dict[str, Any]:
        """Forget a host."""
        return await self._do(calls.host_leave(peer))

    async def rotate(self) -> dict[str, Any]:
        return await self._do(calls.rotate())

    async def audits(self, publisher: str | None = None) -> list[dict[str, Any]]:
        return list((await self._do(calls.audits(publisher)))["audits"])

    async def ask(
        self,
        ref: str,
        question: str,
        *,
        max_tokens: int = 64,
        text: str | None = None,
        prefill: bool = False,
        force: bool = False,
        tofu: bool = False,
        inexact: bool = False,
        strangers: bool = False,
        samples: int = LIMITS.usual_samples,
        group: str | None = None,
        objective: Objective = MIX,
        ignore_eos: bool = False,
        host: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        accept = Accept(force, tofu, inexact, strangers, samples, group)
        call = calls.ask(ref, question, max_tokens, text, prefill, accept, objective, ignore_eos, host)
        return await self._do(call, on_event)

    async def beginning(
        self,
        ids: bytes,
        *,
        model: bytes,
        dtype: str,
        block_tokens: int = 256,
        parts: bool = True,
        curve: tuple[float, float] | None = None,
        seconds: float | None = None,
        force: bool = False,
        local: bool = False,
        group: str | None = None,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        call = calls.beginning_of_ids(ids, model, dtype, block_tokens, parts, curve, seconds, force, local, group)
        return await self._do(call, on_event)

    async def beginnings(self, version: str = "", wait: float = 0.0) -> tuple[str, bytes | None]:
        told = await self._do(calls.beginnings(version, wait))
        return str(told["version"]), base64.b64decode(told["keys"]) if told["keys"] is not None else None

    async def publish_computed(self, frames: Iterable[bytes], *, on_event: OnEvent | None = None) -> dict[str, Any]:
        return await self._do(calls.computed(frames), on_event)

    async def remove(self, ref: str) -> dict[str, Any]:
        return await self._do(calls.remove(ref))

    async def pin(self, ref: str, pinned: bool = True) -> dict[str, Any]:
        return await self._do(calls.pin(ref, pinned))

    async def collect(self, target_bytes: int | None = None) -> dict[str, Any]:
        return await self._do(calls.collect(target_bytes))

    async def trust_list(self) -> dict[str, Any]:
        return await self._do(calls.trust_list())

    async def trust_add(self, peer: str, label: str = "") -> dict[str, Any]:
        return await self._do(calls.trust_add(peer, label))

    async def trust_remove(self, peer: str) -> dict[str, Any]:
        return await self._do(calls.trust_remove(peer))

    async def events(self, follow: bool = False) -> AsyncIterator[dict[str, Any]]:
        async with contextlib.aclosing(self._lines(calls.events(follow))) as messages:
            async for event in messages:
                yield event

    async def prefix(
        self,
        text: str,
        model: Any,
        tokenizer: Any,
        *,
        block_tokens: int = 256,
        room: int = 1024,
        tofu: bool = False,
        strangers: bool = False,
        group: str | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        from kvswap.client.loading import LocalPrefill, check_precision, load_for

        began, document = time.perf_counter(), document_digest(check_text(text))
        await asyncio.to_thread(check_precision, model)
        try:
            artifact = await self.fetch(document, tofu=tofu, strangers=strangers, group=group, text=text)
            details = await self.details(artifact.id)
            cache = await asyncio.to_thread(load_for, text, details, model, tokenizer, room)
        except (NotFound, PlanSaysPrefill, Untrusted, Incompatible, IntegrityError, PeerError) as error:
            local = await asyncio.to_thread(LocalPrefill, text, model, tokenizer, block_tokens)
            begun: dict[str, Any] = {"artifact": None, "tokens": 0}
            with contextlib.suppress(NotFound, PlanSaysPrefill, Incompatible, PeerError):
                if isinstance(error, NotFound):
                    begun = await self._do(calls.beginning(await asyncio.to_thread(local.beginning), tofu, group))
            shared = await self.details(begun["artifact"]) if begun["tokens"] else None
            cache = await asyncio.to_thread(local.cache, room, shared, begun["tokens"])
            return cache, report("prefill", error.message, began, local.tokens, begun["tokens"], begun["artifact"])
        reason = artifact.report["plan"]["reason"]
        return cache, report("fetch", reason, began, artifact.tokens, artifact.tokens, artifact.id)
