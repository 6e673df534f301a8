"""Push: an artifact in the store goes to an origin, from which anybody can fetch it while this node is away.

Chunks first, then the manifest, then the publisher's status record, the index last: a reader never sees a part.  What
is there already is left out, so a push that broke off goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from kvswap.api.events import PushEvent
from kvswap.api.origins import PushResult
from kvswap.core.errors import UsageError
from kvswap.core.ids import Cid, document_key
from kvswap.core.origin_settings import OriginSettings
from kvswap.exchange.export_archive import Export, prepare_export
from kvswap.exchange.node.listing import listing_of
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.at_origin import opened, put_status_record, writer_of
from kvswap.exchange.request import Progress, silent
from kvswap.origins.origin import Origin

_AT_ONCE = 4  # files under way: as many are in memory
_SHOW_SECONDS = 0.25


async def push(
    node: Node,
    reference: str | Cid,
    to: OriginSettings | None = None,
    progress: Progress = silent,
    *,
    group: str | None = None,
) -> PushResult:
    """Put an artifact in the store at an origin: the one of these settings, or those that are for writing.

    Raises `NotFound` for what is not here whole, `IntegrityError` for a damaged file, `OriginRefused` and `OriginError`
    for the origin's trouble, `UsageError` where none is named.
    """
    targets = [to] if to is not None else [settings for settings in node.origins.settings if settings.write]
    if not targets:
        raise UsageError(
            "no origin to push to", cause="no URL was given, and no origin is for writing", hint="kvswap push REF URL"
        )
    export = await prepare_export(node, reference, group)
    results = []
    for settings in targets:
        async with opened(node, settings) as origin:
            upload = _Upload(node, export, origin, progress)
            results.append(await upload.run())
    return results[0] if len(results) == 1 else _together(results)


def _together(results: list[PushResult]) -> PushResult:
    first = results[0]
    return PushResult(
        artifact=first.artifact,
        url=", ".join(result.url for result in results),
        files=first.files,
        bytes=first.bytes,
        uploaded=sum(result.uploaded for result in results),
        uploaded_bytes=sum(result.uploaded_bytes for result in results),
        left_out=first.left_out,
        seconds=sum(result.seconds for result in results),
        plain=any(result.plain for result in results),
    )


@dataclass(slots=True)
class _Upload:
    node: Node
    export: Export
    origin: Origin
    progress: Progress
    done: int = 0
    uploaded: int = 0
    uploaded_bytes: int = 0
    began: float = 0.0
    shown: float = 0.0

    async def run(self) -> PushResult:
        self.began = time.monotonic()
        node, statement, files = self.node, self.export.statement, self.export.files
        with node.store.lease(files):
            todo = iter(files)
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(_AT_ONCE):
                        group.create_task(self._files(todo))
            except BaseExceptionGroup as error:
                raise error.exceptions[0] from None
        await self.origin.put_manifest(statement.artifact, statement.envelope)
        await put_status_record(node, self.origin, statement.manifest.publisher)
        listing = await asyncio.to_thread(listing_of, statement)
        document = document_key(listing.row.document) if listing.row.document else None
        artifact = str(statement.artifact)
        await asyncio.to_thread(node.pushed.add, artifact, self.origin.settings)  # before it is listed: it can go again
        index = await self.origin.index_to_write(writer_of(node))
        await index.add(artifact, statement.manifest.publisher, document, listing.chain)
        await self._show(last=True)
        node.events.add("pushed", artifact=artifact, origin=self.origin.url, bytes=self.uploaded_bytes)
        return PushResult(
            artifact=artifact,
            url=self.origin.url,
            files=len(files),
            bytes=sum(files.values()),
            uploaded=self.uploaded,
            uploaded_bytes=self.uploaded_bytes,
            left_out=self.export.left_out,
            seconds=round(time.monotonic() - self.began, 4),
            plain=self.origin.settings.plain,
        )

    async def _files(self, todo: object) -> None:
        for cid in todo:  # type: ignore[attr-defined]  # shared by the tasks
            data = await asyncio.to_thread(self.node.store.get_chunk, cid)
            if await self.origin.put_file(cid, data):
                self.uploaded += 1
                self.uploaded_bytes += len(data)
            self.done += 1
            await self._show()

    async def _show(self, *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self.shown > _SHOW_SECONDS:
            self.shown = now
            await self.progress(
                PushEvent(
                    done=self.done,
                    files=len(self.export.files),
                    uploaded_bytes=self.uploaded_bytes,
                    seconds=round(now - self.began, 3),
                )
            )
