"""Verbs of the asyncio client beside those of caches: finding, files, and the node itself."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal, overload

from kvswap import api
from kvswap.client import calls
from kvswap.client.base_aio import AsyncCaller, OnEvent
from kvswap.client.sender_aio import to_thread
from kvswap.client.values import model_argument
from kvswap.core.limits import LIMITS


class AsyncVerbs(AsyncCaller):
    """Base of the asyncio client: the verbs that `AsyncClient` has beside those of caches."""

    async def find(
        self,
        ref: str,
        *,
        text: str | None = None,
        model: str | None = None,
        publisher: str | None = None,
        group: str | None = None,
    ) -> api.FindResult:
        """Say who has an artifact or a document, here and at peers, without fetching any of it.

        `text`: the document; where nobody offers it, the longest published prefix of it is looked for.  `model` and
        `publisher` leave out what others made.  Raises `NotFound` where nobody has it.
        """
        request = api.FindRequest(ref=ref, text=text, model=model_argument(model), publisher=publisher, group=group)
        return await self._do(calls.find(request))

    async def render(
        self,
        messages: list[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        *,
        question: str | None = None,
        model: str | None = None,
    ) -> api.RenderResult:
        """Write a conversation as a model's chat template does: a document, with the token counts of its parts.

        `publish` takes its `text` and `checkpoints`, `ask` its `document`, `text` and, with a `question`, its
        `continuation`.  `messages` and `tools` are in the form of OpenAI's API.
        """
        request = api.RenderRequest(
            messages=messages, tools=list(tools), question=question, model=model_argument(model)
        )
        return await self._do(calls.render(request))

    @overload
    async def verify(
        self,
        ref: str,
        *,
        level: int | None = None,
        samples: int = LIMITS.usual_samples,
        text: str | None = None,
        on_event: OnEvent | None = None,
    ) -> api.VerifyResult: ...

    @overload
    async def verify(
        self, ref: None = None, *, store: Literal[True], on_event: OnEvent | None = None
    ) -> api.StoreCheck: ...

    async def verify(
        self,
        ref: str | None = None,
        *,
        store: bool = False,
        level: int | None = None,
        samples: int = LIMITS.usual_samples,
        text: str | None = None,
        on_event: OnEvent | None = None,
    ) -> api.VerifyResult | api.StoreCheck:
        """Check an artifact up to a verification level (0 to 7), or with `store` every file of the store."""
        if store:
            return await self._do(calls.verify_store(), on_event)
        request = api.VerifyRequest(ref=ref, level=level, samples=samples, text=text)
        return await self._do(calls.verify(request), on_event)

    async def export(
        self, ref: str, to: str | Path | IO[bytes], *, group: str | None = None, on_event: OnEvent | None = None
    ) -> api.Exported:
        """Write an artifact in the store as one file, or into a binary stream, which another node can import.

        A file appears under its name when it is whole.  Raises `NotFound` for an artifact that is not here whole.
        """
        from kvswap.client.archives import Writing

        with Writing(to, on_event) as writing:
            async with contextlib.aclosing(self._sender.pieces(calls.export(ref, group), writing.head)) as pieces:
                async for piece in pieces:
                    await to_thread(writing.write, piece)
            return await to_thread(writing.done)

    async def import_(self, source: str | Path | IO[bytes], *, on_event: OnEvent | None = None) -> api.Imported:
        """Take the artifact of a file, or of a binary stream, that `export` wrote into the store, verified.

        Raises `MalformedArchive`, `IntegrityError`, `Untrusted`, `StoreFull`; then nothing is listed.
        """
        from kvswap.client.archives import read_archive

        return await self._do(calls.import_archive(read_archive(source, on_event)))

    async def push(
        self,
        ref: str,
        url: str | None = None,
        *,
        endpoint: str = "",
        region: str = "",
        profile: str = "",
        group: str | None = None,
        on_event: OnEvent | None = None,
    ) -> api.PushResult:
        """Put an artifact in the store at an origin; without a URL at every origin that is for writing.

        What is there already is left out, so a push that broke off goes on where it was.  Raises `NotFound` for what
        is not here whole, `OriginRefused` and `OriginError`.
        """
        to = None
        if url is not None:
            to = api.OriginRequest(url=url, endpoint=endpoint, region=region, profile=profile)
        return await self._do(calls.push(api.PushRequest(ref=ref, to=to, group=group)), on_event)

    async def origins(self) -> list[api.OriginRow]:
        """List the origins of this node, and what was experienced with each."""
        return (await self._do(calls.origins())).origins

    async def origin_add(
        self,
        url: str,
        *,
        endpoint: str = "",
        region: str = "",
        profile: str = "",
        price_per_gb: float = 0.0,
        price_per_request: float = 0.0,
        write: bool = False,
    ) -> api.OriginRow:
        """Look for artifacts at this origin from now on, and with `write` push there by default; prices in dollars."""
        request = api.OriginRequest(
            url=url,
            endpoint=endpoint,
            region=region,
            profile=profile,
            price_per_gb=price_per_gb,
            price_per_request=price_per_request,
            write=write,
        )
        return await self._do(calls.origin_add(request))

    async def origin_rm(self, url: str) -> api.OriginRemoved:
        """Look there no more; what is there stays."""
        return await self._do(calls.origin_remove(url))

    async def origin_test(self, url: str, *, endpoint: str = "", region: str = "", profile: str = "") -> api.OriginTest:
        """Read, and where that is possible write, one small file at an origin; what is wrong is in the result."""
        request = api.OriginRequest(url=url, endpoint=endpoint, region=region, profile=profile)
        return await self._do(calls.origin_test(request))

    async def config(self) -> api.SettingsResult:
        """List the settings that the daemon was started with, and where each came from."""
        return await self._do(calls.config())

    async def ui(self, *, plain: bool = False) -> api.UiResult:
        """Make a link that opens the local page in one browser, once, within ten minutes.

        Its host is a name under `localhost`; with `plain` it is 127.0.0.1, for a browser that does not know such names.
        """
        return await self._do(calls.ui(plain))

    async def stop(self) -> api.StopResult:
        """Ask the daemon to end.  It answers before it does; `kvswap stop` waits until it has."""
        return await self._do(calls.stop())
