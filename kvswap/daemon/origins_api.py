"""HTTP to origins: which there are, testing one, and pushing to it."""

from __future__ import annotations

from aiohttp import web
from msgspec import structs

from kvswap.api import OriginRequest, PushRequest
from kvswap.api.origins import OriginRemoved, OriginRow, OriginsResult, PushResult
from kvswap.core.errors import UsageError
from kvswap.core.ids import parse_reference
from kvswap.core.origin_settings import OriginSettings
from kvswap.core.origin_settings import origin as checked
from kvswap.daemon.requests import reply, request_of, stream
from kvswap.exchange import Node
from kvswap.exchange.push import push
from kvswap.exchange.request import Progress
from kvswap.exchange.try_origin import try_origin


def _settings(asked: OriginRequest) -> OriginSettings:
    """Check the settings in a request.  Raises `UsageError`."""
    try:
        return checked(structs.asdict(asked))
    except ValueError as error:
        raise UsageError(f"this is not {error}", cause="a typing error", hint="kvswap origin add --help") from error


class OriginsApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """List what is answered here."""
        return [
            web.get("/v1/origins", self.origins),
            web.post("/v1/origins", self.add),
            web.delete("/v1/origins", self.remove),
            web.post("/v1/origins/test", self.test),
            web.post("/v1/push", self.push),
        ]

    async def origins(self, request: web.Request) -> web.Response:
        """List the origins, and what was experienced with each."""
        return reply(OriginsResult(origins=[self._row(settings) for settings in self._node.origins.settings]))

    def _row(self, settings: OriginSettings) -> OriginRow:
        node, url = self._node, settings.url
        record = node.ledger.record(url)
        return OriginRow(
            url=url,
            endpoint=settings.endpoint,
            region=settings.region,
            profile=settings.profile,
            price_per_gb=settings.price_per_gb,
            price_per_request=settings.price_per_request,
            write=settings.write,
            configured=node.origins.configured(url),
            plain=settings.plain,
            bytes_in=record.bytes_in,
            rate=node.calibration.peer(url).get("rate"),
            failures=record.failures,
            invalid_chunks=record.lies,
            rests=round(node.peers.backoff_seconds(url), 1),
        )

    async def add(self, request: web.Request) -> web.Response:
        """Add an origin, or change what is known of it; what was held against it is forgotten."""
        settings = _settings(await request_of(request, OriginRequest))
        await self._node.origins.add(settings)
        self._node.ledger.block(settings.url, False)
        self._node.events.add("origin", origin=settings.url, how="added")
        return reply(self._row(settings))

    async def remove(self, request: web.Request) -> web.Response:
        """Forget an origin, the one of `?url=`; what is there stays."""
        url = request.query.get("url", "")
        await self._node.origins.remove(url)
        self._node.events.add("origin", origin=url, how="removed")
        return reply(OriginRemoved(url=url, removed=True))

    async def test(self, request: web.Request) -> web.Response:
        """Read, and where that is possible write, one small file at an origin."""
        settings = _settings(await request_of(request, OriginRequest))
        known = [one for one in self._node.origins.settings if one.url == settings.url]
        return reply(await try_origin(known[0] if known and not settings.endpoint else settings))

    async def push(self, request: web.Request) -> web.StreamResponse:
        """Put an artifact in the store at an origin; the answer is lines."""
        asked = await request_of(request, PushRequest)
        reference = parse_reference(asked.ref)
        to = _settings(asked.to) if asked.to is not None else None

        async def work(progress: Progress) -> PushResult:
            return await push(self._node, reference, self._known(to), progress, group=asked.group)

        return await stream(request, work)

    def _known(self, to: OriginSettings | None) -> OriginSettings | None:
        """Return the settings that this node has of an origin of which only the URL was given."""
        if to is None or to != OriginSettings(to.url):
            return to
        return next((one for one in self._node.origins.settings if one.url == to.url), to)
