"""Verbs of the asyncio client beside those of caches: finding, files, and the node itself."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import IO, TYPE_CHECKING

from msgspec import convert

from kvswap import api
from kvswap.client import calls
from kvswap.client.base_aio import AsyncCaller, OnEvent
from kvswap.client.sender_aio import to_thread
from kvswap.client.values import model_argument

if TYPE_CHECKING:  # each is of one verb, and every command would wait for it
    from kvswap.api.archives import Exported, Imported
    from kvswap.api.find import FindResult
    from kvswap.api.node import SettingsResult, StopResult


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
    ) -> FindResult:
        """Say who has an artifact or a document, here and at peers, without fetching any of it.

        `text`: the document; where nobody offers it, the longest published prefix of it is looked for.  `model` and
        `publisher` leave out what others made.  Raises `NotFound` where nobody has it.
        """
        from kvswap.api.find import FindResult

        request = api.FindRequest(ref=ref, text=text, model=model_argument(model), publisher=publisher, group=group)
        return convert(await self._do(calls.find(request)), FindResult)

    async def export(
        self, ref: str, to: str | Path | IO[bytes], *, group: str | None = None, on_event: OnEvent | None = None
    ) -> Exported:
        """Write an artifact in the store as one file, or into a binary stream, which another node can import.

        A file appears under its name when it is whole.  Raises `NotFound` for an artifact that is not here whole.
        """
        from kvswap.client.archives import Writing

        with Writing(to, on_event) as writing:
            async with contextlib.aclosing(self._sender.pieces(calls.export(ref, group), writing.head)) as pieces:
                async for piece in pieces:
                    await to_thread(writing.write, piece)
            return await to_thread(writing.done)

    async def import_(self, source: str | Path | IO[bytes], *, on_event: OnEvent | None = None) -> Imported:
        """Take the artifact of a file, or of a binary stream, that `export` wrote into the store, verified.

        Raises `MalformedArchive`, `IntegrityError`, `Untrusted`, `StoreFull`; then nothing is listed.
        """
        from kvswap.api.archives import Imported
        from kvswap.client.archives import read_archive

        return convert(await self._do(calls.import_archive(read_archive(source, on_event))), Imported)

    async def config(self) -> SettingsResult:
        """List the settings that the daemon was started with, and where each came from."""
        from kvswap.api.node import SettingsResult

        return convert(await self._do(calls.config()), SettingsResult)

    async def stop(self) -> StopResult:
        """Ask the daemon to end.  It answers before it does; `kvswap stop` waits until it has."""
        from kvswap.api.node import StopResult

        return convert(await self._do(calls.stop()), StopResult)
