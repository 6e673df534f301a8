"""HTTP to what this node believes, and whom it shares with: publishers, audits, its own key, groups."""

from __future__ import annotations

import asyncio

from aiohttp import web

from kvswap.api import GroupRequest, TrustRequest, WithdrawRequest
from kvswap.api.peers import LeaveResult
from kvswap.api.trust import (
    BannedPublisher,
    GroupKey,
    GroupLeaveResult,
    GroupResult,
    GroupRow,
    GroupsResult,
    TrustedPublisher,
    TrustResult,
)
from kvswap.core.documents import check_written
from kvswap.core.errors import NotFound
from kvswap.core.ids import PeerId, parse_reference
from kvswap.daemon.requests import reply, request_of, send_rows, wrong
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
        """List what is answered here."""
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
        """List the publishers that are trusted, and those that were banned."""
        policy = self._node.trust.policy
        return reply(
            TrustResult(
                own=self._node.identity.own,
                publishers=[TrustedPublisher.from_json(row) for row in policy.rows()],
                banned=[BannedPublisher.from_json(row) for row in policy.bans()],
                lifted=[BannedPublisher.from_json(row) for row in policy.lifted()],
            )
        )

    async def add(self, request: web.Request) -> web.Response:
        """Trust a publisher."""
        asked = await request_of(request, TrustRequest)
        row = await asyncio.to_thread(self._node.trust.policy.add, asked.peer, asked.label)
        self._node.events.add("trusted", publisher=row.peer, how=row.how)
        return reply(TrustedPublisher(peer=row.peer, label=row.label, added=row.added, how=row.how))

    async def remove(self, request: web.Request) -> web.Response:
        """Trust a publisher no longer."""
        peer = str(PeerId.parse(request.match_info["peer"]))
        if not await asyncio.to_thread(self._node.trust.policy.remove, peer):
            raise NotFound(f"{peer} is not on the trust list", hint="kvswap trust ls")
        return reply(LeaveResult(peer=peer, removed=True))

    async def rotate(self, request: web.Request) -> web.Response:
        """Make a new publisher key."""
        return reply(await asyncio.to_thread(rotate, self._node))

    async def audits(self, request: web.Request) -> web.StreamResponse:
        """List what verifying found, of all publishers or of one."""
        rows = await asyncio.to_thread(audits.listed, self._node, request.query.get("publisher"))
        return await send_rows(request, "audits", [rows])

    async def withdraw(self, request: web.Request) -> web.Response:
        """Take back what this node published."""
        asked = await request_of(request, WithdrawRequest)
        reference = parse_reference(request.match_info["ref"])
        return reply(await withdraw(self._node, reference, check_written(asked.why[:256], "why")))

    # -- groups ----------------------------------------------------------------------------------

    async def groups(self, request: web.Request) -> web.Response:
        """List the groups of this node, without their secrets."""
        rows = [GroupRow.from_json(row) for row in self._node.trust.groups.rows()]
        return reply(GroupsResult(groups=rows, default=self._node.settings.group or None))

    async def join(self, request: web.Request) -> web.Response:
        """Make a group of this name, or with `key` join the one that somebody else made."""
        asked = await request_of(request, GroupRequest)
        groups, key = self._node.trust.groups, asked.key
        if key is not None:
            group = await asyncio.to_thread(groups.add, Group.from_text(key, asked.name))
        elif asked.name is not None:
            group = await asyncio.to_thread(groups.new, asked.name)
        else:
            raise wrong("the request needs a text 'name'")
        self._node.events.add("group", name=group.name, how="new" if key is None else "imported")
        return reply(GroupResult(name=group.name))

    async def export(self, request: web.Request) -> web.Response:
        """Give the secret itself."""
        group = self._node.trust.groups.get(request.match_info["name"])
        self._node.events.add("group", name=group.name, how="exported")
        return reply(GroupKey(name=group.name, key=group.to_text()))

    async def leave(self, request: web.Request) -> web.Response:
        """Forget a group's key."""
        group = await asyncio.to_thread(self._node.trust.groups.remove, request.match_info["name"])
        self._node.events.add("group", name=group.name, how="left")
        return reply(GroupLeaveResult(name=group.name, removed=True))
