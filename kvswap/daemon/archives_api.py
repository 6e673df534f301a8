"""HTTP to artifacts as one file, in both directions: streamed, with one file of the artifact in memory at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from kvswap.api.archives import Imported
from kvswap.artifact.archive import MEDIA_TYPE
from kvswap.core.errors import MalformedArchive
from kvswap.core.ids import parse_reference
from kvswap.core.limits import LIMITS
from kvswap.daemon.requests import stream
from kvswap.exchange import Node
from kvswap.exchange.export_archive import archive_pieces, prepare_export
from kvswap.exchange.import_archive import import_archive
from kvswap.exchange.request import Progress

LEFT_OUT = "Kvswap-Left-Out"  # files of the artifact that are not in the archive
_PIECE = 1 << 20
_TAKE_SECONDS = 600.0  # for a piece: whoever reads may wait for a user, or a slow disk
_DRAIN_SECONDS = 5.0


class ArchivesApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """List what is answered here."""
        return [
            web.get("/v1/artifacts/{ref}/archive", self.export),
            web.post("/v1/archives", self.import_),
        ]

    async def export(self, request: web.Request) -> web.StreamResponse:
        """Send an artifact in the store as an archive; every file of it is checked before the first byte."""
        reference = parse_reference(request.match_info["ref"])
        export = await prepare_export(self._node, reference, request.query.get("group"))
        self._node.events.add("exported", artifact=str(export.statement.artifact), bytes=export.length)
        response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE, LEFT_OUT: str(export.left_out)})
        response.content_length = export.length
        await response.prepare(request)
        async with contextlib.aclosing(archive_pieces(self._node, export)) as pieces:
            async for piece in pieces:
                for start in range(0, len(piece), _PIECE):
                    async with asyncio.timeout(_TAKE_SECONDS):
                        await response.write(memoryview(piece)[start : start + _PIECE])
        await response.write_eof()
        return response

    async def import_(self, request: web.Request) -> web.StreamResponse:
        """Take an archive, which is the body, into the store; the answer is lines."""

        async def work(progress: Progress) -> Imported:
            try:
                return await import_archive(self._node, _pieces(request))
            finally:
                await _drain(request)

        return await stream(request, work)


async def _pieces(request: web.Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.content.iter_chunked(_PIECE):
            yield piece
    except (web.RequestPayloadError, ConnectionError) as error:
        raise MalformedArchive("the archive ends in the middle", cause="whoever sent it stopped") from error


async def _drain(request: web.Request) -> None:
    """Read what was sent in vain, for a while, so that the sender gets to reading its answer."""
    with contextlib.suppress(TimeoutError, ConnectionError, web.HTTPException, web.RequestPayloadError):
        async with asyncio.timeout(min(_DRAIN_SECONDS, LIMITS.chunk_seconds)):
            async for _ in request.content.iter_chunked(_PIECE):
                pass
