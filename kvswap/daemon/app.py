"""HTTP to use cases.  Long operations answer as JSON lines: events, then one result or error.

No decision is taken here.  When the caller goes away, the use case is cancelled; what it stored stays.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict

from aiohttp import web

from kvswap.api import (
    AskRequest,
    FetchRequest,
    PlanRequest,
    PublishRequest,
    TrainRequest,
    VerifyRequest,
)
from kvswap.api.caches import AskResult, FetchResult, PublishResult, TrainResult
from kvswap.api.node import (
    AliveResult,
    IdentityResult,
    ModelEntry,
    ModelsResult,
    ReadyResult,
)
from kvswap.api.plans import PlanResult
from kvswap.api.status import LoopState, ModelState, StatusResult, TableState, codec_figures
from kvswap.api.verification import StoreCheck, VerifyResult
from kvswap.core.ids import parse_reference
from kvswap.core.limits import LIMITS
from kvswap.core.version import __version__
from kvswap.daemon import metrics
from kvswap.daemon.archives_api import ArchivesApi
from kvswap.daemon.artifacts_api import ArtifactsApi
from kvswap.daemon.engine_api import EngineApi
from kvswap.daemon.guard import guard
from kvswap.daemon.hosts_api import HostsApi
from kvswap.daemon.node_api import NodeApi
from kvswap.daemon.origins_api import OriginsApi
from kvswap.daemon.page.guard import guard_page
from kvswap.daemon.page.page import PORTS, LocalPage
from kvswap.daemon.page.sessions import PageSessions
from kvswap.daemon.page.view import View
from kvswap.daemon.peers_api import PeersApi
from kvswap.daemon.requests import (
    heartbeats,
    reply,
    request_of,
    send_line,
    start_lines,
    stream,
    wrong,
)
from kvswap.daemon.running import RUNNING, Running
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
from kvswap.trust.levels import up_to


class Api:
    """The handlers of one node."""

    def __init__(self, node: Node, model: ModelProcess, watch: Watch, about: NodeApi | None = None) -> None:
        self._node = node
        self._about = about
        self._model = model
        self._watch = watch
        self._before = self._queries()  # those of the start, when nobody waited

    def _queries(self) -> int:
        """Count database accesses on the event loop: there should be none while the node serves."""
        return self._node.store.on_loop + self._node.trust.records.on_loop

    def application(self, token: str) -> web.Application:
        """Make the application that answers all routes to who has the token."""
        sessions, running = PageSessions(), Running()
        app = web.Application(
            middlewares=[trace, errors, guard(token, guard_page(sessions))], client_max_size=LIMITS.api_body_bytes
        )
        app[RUNNING], app[PORTS] = running, []
        artifacts, peers = ArtifactsApi(self._node), PeersApi(self._node)
        page = LocalPage(View(self._node, running, artifacts, peers), sessions)
        page.set_up(app)
        routes = [
            web.get("/healthz", self.healthz),
            web.get("/readyz", self.readyz),
            web.get("/metrics", self.metrics),
            web.get("/v1/status", self.status),
            web.get("/v1/id", self.identity),
            web.get("/v1/events", self.events),
            web.get("/v1/models", self.models),
            web.post("/v1/publish", self.publish),
            web.post("/v1/codec/train", self.train),
            web.post("/v1/fetch", self.fetch),
            web.post("/v1/plan", self.plan),
            web.post("/v1/ask", self.ask),
            web.post("/v1/verify", self.verify),
            *ArchivesApi(self._node).routes(),
            *artifacts.routes(),
            *EngineApi(self._node).routes(),
            *HostsApi(self._node).routes(),
            *(self._about or NodeApi(self._node)).routes(),
            *OriginsApi(self._node).routes(),
            *peers.routes(),
            *TrustApi(self._node).routes(),
        ]
        app.add_routes(answering([*routes, *page.routes(routes)]))
        app.on_response_prepare.append(put_header)
        return app

    # -- state -----------------------------------------------------------------------------------

    async def healthz(self, request: web.Request) -> web.Response:
        """Say that the daemon lives."""
        return reply(AliveResult(ok=True))

    async def readyz(self, request: web.Request) -> web.Response:
        """Say whether it serves this machine; `degraded` names what does not work."""
        return reply(ReadyResult(ok=True, p2p=self._node.p2p, degraded=dict(self._node.problems)))

    async def metrics(self, request: web.Request) -> web.Response:
        """Give the counters, for Prometheus."""
        return web.Response(body=metrics.render(self._node, self._model), content_type="text/plain")

    async def status(self, request: web.Request) -> web.Response:
        """Say how the node is."""
        node = self._node
        count = await asyncio.to_thread(node.store.count)
        connected = node.transport.connected() if node.p2p else []
        withheld = await asyncio.to_thread(self._withheld)
        return reply(
            StatusResult(
                version=__version__,
                home=str(node.settings.home),
                peer=node.transport.peer or None,
                publisher=node.identity.own,
                p2p=node.p2p,
                peers=len(connected),
                degraded=dict(node.problems),
                artifacts=count,
                **withheld,
                codecs=codec_figures(node.calibration.codecs()),
                store_bytes=node.store.used_bytes,
                quota_bytes=node.store.quota_bytes,
                model=self._model_state(),
                bytes_in=node.counters.bytes_in,
                bytes_out=node.counters.bytes_out,
                started=node.counters.started,
                loop=LoopState(**self._watch.to_json(), queries=self._queries() - self._before),
                tables=[TableState(**filling.to_json()) for filling in node.tables.fillings()],
            )
        )

    def _model_state(self) -> ModelState:
        settings = self._node.settings
        return ModelState(
            default=settings.model,
            dtype=settings.dtype,
            device=settings.device,
            loaded=self._model.model,
            pid=self._model.pid,
            processes=self._model.processes,
        )

    def _withheld(self) -> dict[str, int]:
        """Count the artifacts here that are disputed, and those that were found wrong."""
        node = self._node
        rows = [row for name in node.trust.standings.withheld() if (row := node.store.get_artifact(name)) is not None]
        names = [standing.name for standing in node.trust.standings.of_all(rows)]
        return {"disputed": names.count("disputed"), "wrong": names.count("wrong")}

    async def identity(self, request: web.Request) -> web.Response:
        """Name the node, and say where it is reached."""
        transport = self._node.transport
        return reply(
            IdentityResult(
                peer=transport.peer or None,
                publisher=self._node.identity.own,
                addresses=list(transport.addresses()) if self._node.p2p else [],
            )
        )

    async def models(self, request: web.Request) -> web.Response:
        """List the models of the catalogue and those on this machine."""
        here = catalogue.pulled(self._node.settings.models)
        names = sorted(set(catalogue.entries()) | set(here))
        return reply(ModelsResult(models=[ModelEntry(name=name, here=name in here) for name in names]))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """List the recent events, then new ones as they happen (`?follow=0`: only the recent), a line each.

        With `?heartbeat=1` a line says every few seconds that the daemon lives.
        """
        response = await start_lines(request)
        for event in self._node.events.recent():
            await send_line(response, event.to_json())
        if request.query.get("follow", "1") != "0":
            async with heartbeats(response, wanted=request.query.get("heartbeat") == "1"):
                async for event in self._node.events.follow():
                    await send_line(response, event.to_json())
        await response.write_eof()
        return response

    # -- use cases -------------------------------------------------------------------------------

    async def publish(self, request: web.Request) -> web.StreamResponse:
        """Prefill, sign and announce a document; the answer is lines."""
        asked = await request_of(request, PublishRequest)

        async def work(progress: Progress) -> PublishResult:
            return await publish(self._node, asked.text.encode(), asked, progress)

        return await stream(request, work)

    async def train(self, request: web.Request) -> web.StreamResponse:
        """Train the predictive codec; the answer is lines."""
        asked = await request_of(request, TrainRequest)

        async def work(progress: Progress) -> TrainResult:
            return await train(self._node, asked.corpus, progress, model=asked.model, tokens=asked.tokens)

        return await stream(request, work)

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        """Make an artifact local and verified; the answer is lines."""
        asked = await request_of(request, FetchRequest)
        reference = parse_reference(asked.ref)

        async def work(progress: Progress) -> FetchResult:
            return (await fetch(self._node, reference, asked.terms(), progress, text=asked.text)).result()

        return await stream(request, work)

    async def plan(self, request: web.Request) -> web.StreamResponse:
        """Weigh fetching, prefilling, both at once and a host; the answer is lines."""
        asked = await request_of(request, PlanRequest)
        reference = parse_reference(asked.ref)

        async def work(progress: Progress) -> PlanResult:
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
        """Answer a question from a document's cache; the answer is lines."""
        asked = await request_of(request, AskRequest)
        parse_reference(asked.ref)  # what is no reference is answered as such

        async def work(progress: Progress) -> AskResult:
            return await answer(self._node, asked, progress)

        return await stream(request, work)

    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Check an artifact, or the store; the answer is lines."""
        asked = await request_of(request, VerifyRequest)

        async def work(progress: Progress) -> VerifyResult | StoreCheck:
            if asked.store:
                report = await asyncio.to_thread(self._node.store.verify)
                return StoreCheck(**asdict(report), clean=report.clean)
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
