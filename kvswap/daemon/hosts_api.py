"""HTTP to the hosts that invited this node."""

from __future__ import annotations

import asyncio

from aiohttp import web
from msgspec import structs

from kvswap.api import JoinRequest
from kvswap.api.hosts import HostRow, HostsResult, JoinResult
from kvswap.api.peers import LeaveResult
from kvswap.api.plans import TariffFigures
from kvswap.core.errors import KvswapError
from kvswap.daemon.requests import reply, request_of
from kvswap.exchange import Node
from kvswap.net.host_connection import Invitation


class HostsApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        """List what is answered here."""
        return [
            web.get("/v1/hosts", self.hosts),
            web.post("/v1/hosts", self.join),
            web.delete("/v1/hosts/{peer}", self.leave),
        ]

    async def hosts(self, request: web.Request) -> web.Response:
        """List the hosts, each with its offer, or why there is none."""
        rows = await asyncio.gather(*map(self._row, self._node.hosts.all()))
        for peer, problem in list(self._node.hosts.unusable.items()):
            rows.append(HostRow(peer=peer, url=None, seconds=None, problem=f"its invitation is of no use: {problem}"))
        return reply(HostsResult(hosts=rows))

    async def _row(self, invitation: Invitation) -> HostRow:
        row = HostRow(
            peer=invitation.peer,
            url=invitation.url,
            seconds=self._node.calibration.host_seconds(invitation.peer),
            problem=None,
        )
        try:
            offer = (await self._node.hosts.offer(invitation.peer)).offer
        except KvswapError as error:
            return structs.replace(row, problem=error.message)
        tariff = TariffFigures(**offer.tariff.to_json())
        return structs.replace(row, model=offer.label, dtype=offer.dtype, tariff=tariff)

    async def join(self, request: web.Request) -> web.Response:
        """Accept an invitation."""
        asked = await request_of(request, JoinRequest)
        invitation = await asyncio.to_thread(self._node.hosts.add, asked.invitation, plain=asked.plain)
        self._node.events.add("host", peer=invitation.peer, how="joined")
        return reply(JoinResult(peer=invitation.peer, url=invitation.url))

    async def leave(self, request: web.Request) -> web.Response:
        """Forget a host."""
        peer = request.match_info["peer"]
        await asyncio.to_thread(self._node.hosts.remove, peer)
        self._node.events.add("host", peer=peer, how="left")
        return reply(LeaveResult(peer=peer, removed=True))
