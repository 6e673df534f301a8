"""HTTP to use cases.  Long operations answer as JSON lines: events, then one result or error.

No decision is taken here.  When the caller goes away, the use case is cancelled; what it stored stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from aiohttp import web

from kvswap.api import (
    AskRequest,
    CollectRequest,
    FetchRequest,
    PlanRequest,
    PublishRequest,
    TrainRequest,
    VerifyRequest,
)
from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.ids import Cid, parse_reference
from kvswap.core.limits import LIMITS
from kvswap.core.version import __version__
from kvswap.daemon import metrics
from kvswap.daemon.archives_api import ArchivesApi
from kvswap.daemon.engine_api import EngineApi
from kvswap.daemon.guard import guard
from kvswap.daemon.hosts_api import HostsApi
from kvswap.daemon.node_api import NodeApi
from kvswap.daemon.peers_api import PeersApi
from kvswap.daemon.requests import (
    heartbeats,
    request_of,
    send_line,
    send_rows,
    start_lines,
    stream,
    wrong,
)
from kvswap.daemon.supervisor import ModelProcess
from kvswap.daemon.tracing import put_header, trace
from kvswap.daemon.trust_api import TrustApi
from kvswap.daemon.watch import Watch
from kvswap.exchange import Node
from kvswap.exchange.ask import answer
from kvswap.exchange.fetch import fetch
from kvswap.exchange.plan import plan_reference
from kvswap.exchange.publish import publish
from kvswap.exchange.request import Progress
from kvswap.exchange.train import train
from kvswap.exchange.verify import verify_artifact
from kvswap.model import catalogue
from kvswap.net.failing import answering, errors
from kvswap.store import ArtifactRow
from kvswap.store.tables import ROWS_AT_ONCE
from kvswap.trust import Group, Statement
from kvswap.trust.groups import SEALED_DTYPE
from kvswap.trust.levels import up_to


def _decrypted(statement: Statement) -> dict[str, Any]:
    """What members read in the place of what the index says of a sealed artifact."""
    manifest = statement.manifest
    return {
        "document": manifest.document.reference if manifest.document else None,
        "model": manifest.model.digest.hex(),
        "label": manifest.model.label,
        "dtype": manifest.layout.dtype,
        "tokens": manifest.prefix.tokens,
        "raw_bytes": manifest.raw_bytes,
        "group": statement.identifiers.name if isinstance(statement.identifiers, Group) else None,
    }


class Api:
    """The handlers of one node."""

    def __init__(self, node: Node, model: ModelProcess, watch: Watch, about: NodeApi | None = None) -> None:
        self._node = node
        self._about = about
        self._model = model
        self._watch = watch
        self._before = self._queries()  # those of the start, when nobody waited

    def _queries(self) -> int:
        """Database accesses on the event loop: there should be none while the node serves."""
        return self._node.store.on_loop + self._node.trust.records.on_loop

    def application(self, token: str) -> web.Application:
        app = web.Application(middlewares=[trace, errors, guard(token)], client_max_size=LIMITS.api_body_bytes)
        routes = [
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
            web.get("/v1/status", self.status),
            web.get("/v1/id", self.identity),
            web.get("/v1/events", self.events),
            web.get("/v1/models", self.models),
            web.get("/v1/artifacts", self.artifacts),
            web.get("/v1/artifacts/{ref}", self.artifact),
            web.delete("/v1/artifacts/{ref}", self.remove),
            web.post("/v1/artifacts/{ref}/pin", self.pin),
            web.post("/v1/artifacts/{ref}/unpin", self.pin),
            web.get("/v1/chunks/{cid}", self.chunk),
            web.post("/v1/publish", self.publish),
            web.post("/v1/codec/train", self.train),
            web.post("/v1/fetch", self.fetch),
            web.post("/v1/plan", self.plan),
            web.post("/v1/ask", self.ask),
            web.post("/v1/verify", self.verify),
            web.post("/v1/gc", self.collect),
            *ArchivesApi(self._node).routes(),
            *EngineApi(self._node).routes(),
            *HostsApi(self._node).routes(),
            *(self._about or NodeApi(self._node)).routes(),
            *PeersApi(self._node).routes(),
            *TrustApi(self._node).routes(),
        ]
        app.add_routes(answering(routes))
        app.on_response_prepare.append(put_header)
        return app

    # -- state -----------------------------------------------------------------------------------

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    async def readyz(self, request: web.Request) -> web.Response:
        """Ready to serve this machine; `degraded` names what does not work."""
        return web.json_response({"ok": True, "p2p": self._node.p2p, "degraded": self._node.problems})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(self._node, self._model), content_type="text/plain")

    async def status(self, request: web.Request) -> web.Response:
        node = self._node
        count = await asyncio.to_thread(node.store.count)
        connected = node.transport.connected() if node.p2p else []
        return web.json_response(
            {
                "version": __version__,
                "home": str(node.settings.home),
                "peer": node.transport.peer or None,
                "publisher": node.identity.own,
                "p2p": node.p2p,
                "peers": len(connected),
                "degraded": node.problems,
                "artifacts": count,
                **await asyncio.to_thread(self._withheld),
                "codecs": node.calibration.codecs(),
                "store_bytes": node.store.used_bytes,
                "quota_bytes": node.store.quota_bytes,
                "model": {
                    "default": node.settings.model,
                    "dtype": node.settings.dtype,
                    "device": node.settings.device,
                    "loaded": self._model.model,
                    "pid": self._model.pid,
                    "processes": self._model.processes,
                },
                "bytes_in": node.counters.bytes_in,
                "bytes_out": node.counters.bytes_out,
                "started": node.counters.started,
                "loop": self._watch.to_json() | {"queries": self._queries() - self._before},
                "tables": [filling.to_json() for filling in node.tables.fillings()],
            }
        )

    def _withheld(self) -> dict[str, int]:
        """Count the artifacts here that are disputed, and those that were found wrong."""
        node = self._node
        rows = [row for name in node.trust.standings.withheld() if (row := node.store.get_artifact(name)) is not None]
        names = [standing.name for standing in node.trust.standings.of_all(rows)]
        return {"disputed": names.count("disputed"), "wrong": names.count("wrong")}

    async def identity(self, request: web.Request) -> web.Response:
        transport = self._node.transport
        return web.json_response(
            {
                "peer": transport.peer or None,
                "publisher": self._node.identity.own,
                "addresses": transport.addresses() if self._node.p2p else [],
            }
        )

    async def models(self, request: web.Request) -> web.Response:
        here = catalogue.pulled(self._node.settings.models)
        rows = [{"name": n, "here": n in here} for n in sorted(set(catalogue.entries()) | set(here))]
        return web.json_response({"models": rows})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """JSON lines: the recent events, then new ones as they happen (`?follow=0`: only the recent).

        With `?heartbeat=1` a line says every few seconds that the daemon lives.
        """
        response = await start_lines(request)
        for event in self._node.events.recent():
            await send_line(response, event)
        if request.query.get("follow", "1") != "0":
            async with heartbeats(response, wanted=request.query.get("heartbeat") == "1"):
                async for event in self._node.events.follow():
                    await send_line(response, event)
        await response.write_eof()
        return response

    # -- artifacts -------------------------------------------------------------------------------

    async def artifacts(self, request: web.Request) -> web.StreamResponse:
        return await send_rows(request, "artifacts", self._pages(request.query.get("document")))

    def _pages(self, document: str | None) -> Iterator[list[dict[str, Any]]]:
        """List what is here, newest first, a page at a time: no list of all is ever in memory."""
        if document:
            yield self._shown(self._node.store.artifacts(document))
            return
        page = self._node.store.page(None, ROWS_AT_ONCE)
        while page:
            yield self._shown(page)
            page = self._node.store.page(page[-1], ROWS_AT_ONCE) if len(page) == ROWS_AT_ONCE else []

    def _shown(self, rows: Sequence[ArtifactRow]) -> list[dict[str, Any]]:
        """Rows as people read them: the index knows no more of what is sealed than everybody may."""
        out = []
        for row, standing in zip(rows, self._node.trust.standings.of_all(rows), strict=True):
            shown = row.to_json()
            shown["group"] = None
            shown["standing"] = standing.name
            shown["why"] = standing.why or None
            shown["disputed_with"] = standing.others
            if row.dtype == SEALED_DTYPE:
                try:
                    shown |= _decrypted(self._node.read(self._node.store.envelope(row.id) or b""))
                except KvswapError:
                    shown |= {"label": "(sealed)", "group": "?"}
            out.append(shown)
        return out

    async def _rows(self, reference: str) -> list[Any]:
        """An artifact, or all those of a document: it may be here in several codecs."""
        rows = await asyncio.to_thread(self._node.lookup, parse_reference(reference))
        if not rows:
            raise NotFound(f"{reference} is not in the store", hint="kvswap ls")
        return list(rows)

    async def artifact(self, request: web.Request) -> web.Response:
        """The manifest, the envelope in base64, and where the chunk files are; with `?key=1` what opens them."""
        row = (await self._rows(request.match_info["ref"]))[0]
        with_key = request.query.get("key") == "1"
        return web.json_response(await asyncio.to_thread(self._whole, row, with_key))

    def _whole(self, row: ArtifactRow, with_key: bool) -> dict[str, Any]:
        """Blocks for as long as a manifest is large; call in a thread."""
        import base64

        envelope = self._node.store.envelope(row.id) or b""
        statement = self._node.read(envelope)
        body = {
            **self._shown([row])[0],
            "manifest": statement.manifest.to_json(),
            "envelope": base64.b64encode(envelope).decode(),
            "chunks_directory": str(self._node.store.chunks_directory),
        }
        if statement.key is not None and with_key:
            body["key"] = statement.key.hex()
        return body

    async def remove(self, request: web.Request) -> web.Response:
        rows = await self._rows(request.match_info["ref"])
        for row in rows:
            await asyncio.to_thread(self._node.store.remove, row.id)
        freed = await asyncio.to_thread(self._node.store.collect)
        return web.json_response({"removed": rows[0].id, "artifacts": [r.id for r in rows], "freed_bytes": freed})

    async def pin(self, request: web.Request) -> web.Response:
        rows = await self._rows(request.match_info["ref"])
        pinned = request.path.endswith("/pin")
        for row in rows:
            await asyncio.to_thread(self._node.store.pin, row.id, pinned)
        return web.json_response({"artifact": rows[0].id, "artifacts": [r.id for r in rows], "pinned": pinned})

    async def chunk(self, request: web.Request) -> web.Response:
        cid = Cid.parse(request.match_info["cid"])
        return web.Response(body=await asyncio.to_thread(self._node.store.get_chunk, cid))

    async def collect(self, request: web.Request) -> web.Response:
        asked = await request_of(request, CollectRequest)
        freed = await asyncio.to_thread(self._node.store.collect, asked.target_bytes)
        return web.json_response({"freed_bytes": freed, "store_bytes": self._node.store.used_bytes})

    # -- use cases -------------------------------------------------------------------------------

    async def publish(self, request: web.Request) -> web.StreamResponse:
        asked = await request_of(request, PublishRequest)

        async def work(progress: Progress) -> dict[str, Any]:
            return await publish(self._node, asked.text.encode(), asked, progress)

        return await stream(request, work)

    async def train(self, request: web.Request) -> web.StreamResponse:
        asked = await request_of(request, TrainRequest)

        async def work(progress: Progress) -> dict[str, Any]:
            return await train(self._node, asked.corpus, progress, model=asked.model, tokens=asked.tokens)

        return await stream(request, work)

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        asked = await request_of(request, FetchRequest)
        reference = parse_reference(asked.ref)

        async def work(progress: Progress) -> dict[str, Any]:
            return (await fetch(self._node, reference, asked.terms(), progress, text=asked.text)).to_json()

        return await stream(request, work)

    async def plan(self, request: web.Request) -> web.StreamResponse:
        asked = await request_of(request, PlanRequest)
        reference = parse_reference(asked.ref)

        async def work(progress: Progress) -> dict[str, Any]:
            return await plan_reference(
                self._node,
                reference,
                asked.text,
                asked.terms(),
                host=asked.host,
                question=asked.question,
                max_tokens=asked.max_tokens,
            )

        return await stream(request, work)

    async def ask(self, request: web.Request) -> web.StreamResponse:
        asked = await request_of(request, AskRequest)
        reference = parse_reference(asked.ref)

        async def work(progress: Progress) -> dict[str, Any]:
            return await answer(
                self._node,
                reference,
                asked.question,
                max_tokens=asked.max_tokens,
                text=asked.text,
                prefill=asked.prefill,
                terms=asked.terms(),
                ignore_eos=asked.ignore_eos,
                host=asked.host,
                progress=progress,
            )

        return await stream(request, work)

    async def verify(self, request: web.Request) -> web.StreamResponse:
        asked = await request_of(request, VerifyRequest)

        async def work(progress: Progress) -> dict[str, Any]:
            if asked.store:
                report = await asyncio.to_thread(self._node.store.verify)
                return {n: getattr(report, n) for n in report.__slots__} | {"clean": report.clean}
            if asked.ref is None:
                raise wrong("the request needs a text 'ref'")
            return await verify_artifact(
                self._node,
                parse_reference(asked.ref),
                levels=up_to(asked.level) if asked.level is not None else None,
                samples=asked.samples,
                text=asked.text,
                progress=progress,
            )

        return await stream(request, work)
