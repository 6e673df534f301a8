"""HTTP to the artifacts in the store: listing, showing, keeping and removing them."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web
from msgspec import structs

from kvswap.api import CollectRequest
from kvswap.api.store import ArtifactDetails, CollectResult, PinResult, RemoveResult, StoredArtifact
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.ids import Cid, parse_reference
from kvswap.daemon.requests import reply, request_of, send_long, send_rows
from kvswap.exchange import Node
from kvswap.exchange.publishing.take_back import entries_of, take_back
from kvswap.store import ArtifactRow
from kvswap.store.tables import ROWS_AT_ONCE
from kvswap.trust import Group, Statement
from kvswap.trust.groups import SEALED_DTYPE


def _decrypted(shown: StoredArtifact, statement: Statement) -> StoredArtifact:
    """Return what members read in the place of what the index says of a sealed artifact."""
    manifest = statement.manifest
    return structs.replace(
        shown,
        document=manifest.document.reference if manifest.document else None,
        model=manifest.model.digest.hex(),
        label=manifest.model.label,
        dtype=manifest.layout.dtype,
        tokens=manifest.prefix.tokens,
        raw_bytes=manifest.raw_bytes,
        group=statement.identifiers.name if isinstance(statement.identifiers, Group) else None,
    )


class ArtifactsApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """List what is answered here."""
        return [
            web.get("/v1/artifacts", self.artifacts),
            web.get("/v1/artifacts/{ref}", self.artifact),
            web.delete("/v1/artifacts/{ref}", self.remove),
            web.post("/v1/artifacts/{ref}/pin", self.pin),
            web.post("/v1/artifacts/{ref}/unpin", self.pin),
            web.get("/v1/chunks/{cid}", self.chunk),
            web.post("/v1/gc", self.collect),
        ]

    async def artifacts(self, request: web.Request) -> web.StreamResponse:
        """List the artifacts in the store, newest first, all or those of a `?document=`."""
        return await send_rows(request, "artifacts", self._pages(request.query.get("document")))

    def _pages(self, document: str | None) -> Iterator[list[StoredArtifact]]:
        """List what is here, newest first, a page at a time."""
        pages = [self._node.store.artifacts(document)] if document else self._node.store.pages(ROWS_AT_ONCE)
        yield from map(self.shown, pages)

    def shown(self, rows: Sequence[ArtifactRow]) -> list[StoredArtifact]:
        """Show rows as people read them: the index knows no more of what is sealed than everybody may."""
        out = []
        for row, standing in zip(rows, self._node.trust.standings.of_all(rows), strict=True):
            shown = StoredArtifact(
                artifact=row.id,
                document=row.document,
                model=row.model.hex(),
                label=row.label,
                dtype=row.dtype,
                tokens=row.tokens,
                raw_bytes=row.raw_bytes,
                wire_bytes=row.wire_bytes,
                publisher=row.publisher,
                expires=row.expires,
                added=row.added,
                used=row.used,
                pinned=row.pinned,
                complete=row.complete,
                group=None,
                standing=standing.name,
                why=standing.why or None,
                disputed_with=list(standing.others),
            )
            if row.dtype == SEALED_DTYPE:
                try:
                    shown = _decrypted(shown, self._node.read(self._node.store.envelope(row.id) or b""))
                except KvswapError:
                    shown = structs.replace(shown, label="(sealed)", group="?")
            out.append(shown)
        return out

    async def _rows(self, reference: str) -> list[ArtifactRow]:
        """Look up an artifact, or all those of a document: it may be here in several codecs."""
        rows = await asyncio.to_thread(self._node.lookup, parse_reference(reference))
        if not rows:
            raise NotFound(f"{reference} is not in the store", hint="kvswap ls")
        return list(rows)

    async def artifact(self, request: web.Request) -> web.StreamResponse:
        """Show the manifest, the envelope, and where the chunk files are; with `?key=1` what opens them."""
        row = (await self._rows(request.match_info["ref"]))[0]
        with_key = request.query.get("key") == "1"
        return await send_long(request, await asyncio.to_thread(self._whole, row, with_key))

    def _whole(self, row: ArtifactRow, with_key: bool) -> dict[str, Any]:
        """Read all of an artifact but its files.  Blocks for as long as a manifest is large; call in a thread.

        Returns the JSON form of an `ArtifactDetails`, made without a call that goes over all of a manifest: such a one
        keeps all threads.
        """
        envelope = self._node.store.envelope(row.id) or b""
        statement = self._node.read(envelope)
        details = ArtifactDetails(
            **structs.asdict(self.shown([row])[0]),
            manifest={},
            envelope=base64.b64encode(envelope).decode(),
            chunks_directory=str(self._node.store.chunks_directory),
            key=statement.key.hex() if statement.key is not None and with_key else None,
        )
        return details.to_json() | {"manifest": statement.manifest.to_json()}

    async def remove(self, request: web.Request) -> web.Response:
        """Remove an artifact, or all of a document, also from where it was pushed unless `?origins=keep`."""
        rows = await self._rows(request.match_info["ref"])
        pushed = [] if request.query.get("origins") == "keep" else await asyncio.to_thread(entries_of, self._node, rows)
        for row in rows:
            await asyncio.to_thread(self._node.store.remove, row.id)
        freed = await asyncio.to_thread(self._node.store.collect)
        taken = await take_back(self._node, pushed)
        return reply(
            RemoveResult(
                removed=rows[0].id,
                artifacts=[row.id for row in rows],
                freed_bytes=freed,
                origins=taken.origins,
                still_at=taken.still_at,
            )
        )

    async def pin(self, request: web.Request) -> web.Response:
        """Keep an artifact whatever space is needed, or no longer."""
        rows = await self._rows(request.match_info["ref"])
        pinned = request.path.endswith("/pin")
        for row in rows:
            await asyncio.to_thread(self._node.store.pin, row.id, pinned)
        return reply(PinResult(artifact=rows[0].id, artifacts=[row.id for row in rows], pinned=pinned))

    async def chunk(self, request: web.Request) -> web.Response:
        """Give the bytes of a chunk in the store."""
        cid = Cid.parse(request.match_info["cid"])
        return web.Response(body=await asyncio.to_thread(self._node.store.get_chunk, cid))

    async def collect(self, request: web.Request) -> web.Response:
        """Free space in the store."""
        asked = await request_of(request, CollectRequest)
        freed = await asyncio.to_thread(self._node.store.collect, asked.target_bytes)
        return reply(CollectResult(freed_bytes=freed, store_bytes=self._node.store.used_bytes))
