"""HTTP to the hosts that invited this node."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from kvswap.api import JoinRequest
from kvswap.core.errors import KvswapError
from kvswap.daemon.requests import request_of
from kvswap.exchange import Node
from kvswap.net.host_connection import Invitation


class HostsApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/v1/hosts", self.hosts),
            web.post("/v1/hosts", self.join),
            web.delete("/v1/hosts/{peer}", self.leave),
        ]

    async def hosts(self, request: web.Request) -> web.Response:
        """Each with its offer, or why there is none."""
        rows = await asyncio.gather(*map(self._row, self._node.hosts.all()))
        rows += [
            {"peer": peer, "url": None, "seconds": None, "problem": f"its invitation is of no use: {problem}"}
            for peer, problem in list(self._node.hosts.unusable.items())
        ]
        return web.json_response({"hosts": rows})

    async def _row(self, invitation: Invitation) -> dict[str, Any]:
        seconds = self._node.calibration.host_seconds(invitation.peer)
        row: dict[str, Any] = {"peer": invitation.peer, "url": invitation.url, "seconds": seconds}
        try:
            offer = (await self._node.hosts.offer(invitation.peer)).offer
        except KvswapError as error:
            return row | {"problem": error.message}
        return row | {"model": offer.label, "dtype": offer.dtype, "tariff": offer.tariff.to_json(), "problem": None}

    async def join(self, request: web.Request) -> web.Response:
        asked = await request_of(request, JoinRequest)
        invitation = await asyncio.to_thread(self._node.hosts.add, asked.invitation, plain=asked.plain)
        self._node.events.add("host", peer=invitation.peer, how="joined")
        return web.json_response({"peer": invitation.peer, "url": invitation.url})

    async def leave(self, request: web.Request) -> web.Response:
        peer = request.match_info["peer"]
        await asyncio.to_thread(self._node.hosts.remove, peer)
        self._node.events.add("host", peer=peer, how="left")
        return web.json_response({"peer": peer, "removed": True})
