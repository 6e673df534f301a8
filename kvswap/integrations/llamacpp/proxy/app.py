"""The HTTP side of `kvswap llama`: everything goes to llama-server as it came."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass

from aiohttp import web

from kvswap.integrations.llamacpp.proxy.forward import Forwarder, first_part, server_error, streamed
from kvswap.integrations.llamacpp.proxy.keeper import Keeper
from kvswap.integrations.llamacpp.proxy.prompts import KINDS, OTHER
from kvswap.integrations.llamacpp.proxy.slot_actions import SlotActions
from kvswap.integrations.llamacpp.proxy.turns import Turn

STATUS_PATH = "/kvswap/status"
_LOOKED_AT = 32 << 20  # bytes of a request, beyond which it is only passed through
_ADAPTERS = "/lora-adapters"


@dataclass(frozen=True, slots=True)
class ProxyApp:
    """The answers to requests: the forwarder gives them, and the keeper acts before and after."""

    forwarder: Forwarder
    keeper: Keeper
    actions: SlotActions
    api_key: str = ""
    prefix: str = ""

    def application(self) -> web.Application:
        """Return the application that takes every path."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer, expect_handler=_expected)
        return application

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix(self.prefix) if self.prefix else request.path
        if request.method == "GET" and path == STATUS_PATH:
            return self._status(request)
        if request.method == "POST" and path.startswith("/slots/"):
            return await self.actions.answer(request, path.removeprefix("/slots/"))
        if request.method == "POST" and path == _ADAPTERS:
            self.keeper.pass_through("adapters were changed while the server ran")
        if request.method == "POST" and path in KINDS:
            return await self._generate(request, KINDS[path])
        return await self.forwarder.forward(request, streamed(request))

    async def _generate(self, request: web.Request, kind: str) -> web.StreamResponse:
        body, longer = await first_part(request, _LOOKED_AT)
        preparing = asyncio.ensure_future(self.keeper.before(OTHER if longer is not None else kind, body))
        try:
            turn = await asyncio.shield(preparing)
        except asyncio.CancelledError:  # the client has gone; what was begun with the slots is brought to its end
            preparing.add_done_callback(self._abandoned)
            raise
        try:
            return await self.forwarder.forward(request, body if longer is None else longer, turn.watcher)
        finally:
            self.keeper.after(turn)

    def _abandoned(self, preparing: asyncio.Future[Turn]) -> None:
        if not preparing.cancelled() and preparing.exception() is None:
            self.keeper.after(preparing.result())

    def _status(self, request: web.Request) -> web.Response:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if self.api_key and not hmac.compare_digest(given.encode(), self.api_key.encode()):
            return server_error(401, "Invalid API Key", "authentication_error")
        return web.json_response(self.keeper.status())


async def _expected(request: web.Request) -> None:
    """Answer the header `Expect: 100-continue`, and pass over any other."""
    if request.version >= (1, 1) and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
