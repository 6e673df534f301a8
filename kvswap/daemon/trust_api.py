"""HTTP to what this node believes, and whom it shares with: publishers, audits, its own key, groups."""

from __future__ import annotations

import asyncio

from aiohttp import web

from kvswap.api import GroupRequest, TrustRequest, WithdrawRequest
from kvswap.core.documents import check_written
from kvswap.core.errors import NotFound
from kvswap.core.ids import PeerId, parse_reference
from kvswap.daemon.requests import request_of, send_rows, wrong
from kvswap.exchange import Node
from kvswap.exchange.rotate import rotate
from kvswap.exchange.verification import audits
from kvswap.exchange.withdraw import withdraw
from kvswap.trust import Group


class TrustApi:
    """The handlers of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/artifacts/{ref}/withdraw", self.withdraw),
            web.get("/v1/audits", self.audits),
            web.get("/v1/trust", self.publishers),
            web.post("/v1/trust", self.add),
            web.delete("/v1/trust/{peer}", self.remove),
            web.post("/v1/rotate", self.rotate),
            web.get("/v1/groups", self.groups),
            web.post("/v1/groups", self.join),
            web.post("/v1/groups/{name}/export", self.export),
            web.delete("/v1/groups/{name}", self.leave),
        ]

    async def publishers(self, request: web.Request) -> web.Response:
        policy = self._node.trust.policy
        own = self._node.identity.own
        bans = {"distrusted": policy.bans(), "lifted": policy.lifted()}
        return web.json_response({"own": own, "publishers": policy.rows(), **bans})

    async def add(self, request: web.Request) -> web.Response:
        asked = await request_of(request, TrustRequest)
        row = await asyncio.to_thread(self._node.trust.policy.add, asked.peer, asked.label)
        self._node.events.add("trusted", publisher=row.peer, how=row.how)
        return web.json_response({"peer": row.peer, "label": row.label, "added": row.added, "how": row.how})

    async def remove(self, request: web.Request) -> web.Response:
        peer = str(PeerId.parse(request.match_info["peer"]))
        if not await asyncio.to_thread(self._node.trust.policy.remove, peer):
            raise NotFound(f"{peer} is not on the trust list", hint="kvswap trust ls")
        return web.json_response({"peer": peer, "removed": True})

    async def rotate(self, request: web.Request) -> web.Response:
        return web.json_response(await asyncio.to_thread(rotate, self._node))

    async def audits(self, request: web.Request) -> web.StreamResponse:
        rows = await asyncio.to_thread(audits.listed, self._node, request.query.get("publisher"))
        return await send_rows(request, "audits", [rows])

    async def withdraw(self, request: web.Request) -> web.Response:
        asked = await request_of(request, WithdrawRequest)
        reference = parse_reference(request.match_info["ref"])
        return web.json_response(await withdraw(self._node, reference, check_written(asked.why[:256], "why")))

    # -- groups ----------------------------------------------------------------------------------

    async def groups(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"groups": self._node.trust.groups.rows(), "default": self._node.settings.group or None}
        )

    async def join(self, request: web.Request) -> web.Response:
        """A new group of this name, or with `key` the one that somebody else made."""
        asked = await request_of(request, GroupRequest)
        groups, key = self._node.trust.groups, asked.key
        if key is not None:
            group = await asyncio.to_thread(groups.add, Group.from_text(key, asked.name))
        elif asked.name is not None:
            group = await asyncio.to_thread(groups.new, asked.name)
        else:
            raise wrong("the request needs a text 'name'")
        self._node.events.add("group", name=group.name, how="new" if key is None else "imported")
        return web.json_response({"name": group.name})

    async def export(self, request: web.Request) -> web.Response:
        """The secret itself."""
        group = self._node.trust.groups.get(request.match_info["name"])
        self._node.events.add("group", name=group.name, how="exported")
        return web.json_response({"name": group.name, "key": group.to_text()})

    async def leave(self, request: web.Request) -> web.Response:
        group = await asyncio.to_thread(self._node.trust.groups.remove, request.match_info["name"])
        self._node.events.add("group", name=group.name, how="left")
        return web.json_response({"name": group.name, "removed": True})
