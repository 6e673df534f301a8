"""HTTP to searches, to the settings that hold here, and to the end of the daemon."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from aiohttp import web

from kvswap.api import FindRequest
from kvswap.api.find import FindResult
from kvswap.api.node import SettingsResult, StopResult, setting_rows
from kvswap.core.errors import UsageError
from kvswap.core.ids import parse_reference
from kvswap.daemon.requests import reply, request_of, stream
from kvswap.exchange import Node
from kvswap.exchange.find import find
from kvswap.exchange.request import Progress

_logger = logging.getLogger(__name__)


class NodeApi:
    """The handlers of one node.  `places` says where its settings came from, `stop` ends the daemon."""

    def __init__(
        self, node: Node, places: Mapping[str, str] | None = None, stop: Callable[[], None] | None = None
    ) -> None:
        self._node = node
        self._places = places or {}
        self._stop = stop

    def routes(self) -> list[web.RouteDef]:
        """List what is answered here."""
        return [
            web.post("/v1/find", self.find),
            web.get("/v1/settings", self.settings),
            web.post("/v1/stop", self.stop),
        ]

    async def find(self, request: web.Request) -> web.StreamResponse:
        """Say who has an artifact or a document; the answer is lines, as peers may be slow."""
        asked = await request_of(request, FindRequest)
        reference = parse_reference(asked.ref)

        async def work(progress: Progress) -> FindResult:
            return await find(self._node, reference, asked)

        return await stream(request, work)

    async def settings(self, request: web.Request) -> web.Response:
        """List the settings that the daemon was started with."""
        settings = self._node.settings
        return reply(SettingsResult(home=str(settings.home), settings=setting_rows(settings, self._places)))

    async def stop(self, request: web.Request) -> web.Response:
        """End the daemon, once this is answered."""
        if self._stop is None:
            raise UsageError("this API does not end its process", cause="it is part of another program")
        _logger.info("stopping: a client asked for it")
        self._stop()
        return reply(StopResult(pid=os.getpid(), home=str(self._node.settings.home)))
