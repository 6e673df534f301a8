"""The page's routes: the page itself, its parts as they change, and the API's own handlers for what it can do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from functools import cached_property
from importlib import resources
from typing import Any

import aiohttp_jinja2
import jinja2
from aiohttp import web

from kvswap.api.node import UiResult
from kvswap.core.errors import QuotaExceeded, UsageError
from kvswap.core.version import __version__
from kvswap.core.words import STANDINGS, in_words
from kvswap.daemon.page.guard import HEADERS, LINK_PATH, PREFIX, SESSION, STYLE
from kvswap.daemon.page.live import MOST_PAGES, LiveParts
from kvswap.daemon.page.sessions import LINK_SECONDS, PageSessions
from kvswap.daemon.page.view import View
from kvswap.daemon.page.words import FILTERS
from kvswap.daemon.requests import reply

_ROOT = f"{PREFIX}/"
_STATIC = {"page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
_PAGES = 100_000  # of the artifacts
_QUERY = 200  # characters
ACTIONS = frozenset(
    {
        ("POST", "/v1/publish"),
        ("POST", "/v1/artifacts/{ref}/pin"),
        ("POST", "/v1/artifacts/{ref}/unpin"),
        ("POST", "/v1/artifacts/{ref}/withdraw"),
        ("DELETE", "/v1/artifacts/{ref}"),
        ("POST", "/v1/trust"),
        ("DELETE", "/v1/trust/{peer}"),
        ("POST", "/v1/peers/{peer}/block"),
        ("POST", "/v1/peers/{peer}/unblock"),
        ("POST", "/v1/groups"),
        ("DELETE", "/v1/groups/{name}"),
        ("DELETE", "/v1/hosts/{peer}"),
    }
)
"""The actions of the page.  A group's key is not among it, nor another home, nor the daemon's end."""


class LocalPage:
    """The handlers of the page of one node."""

    def __init__(self, view: View, sessions: PageSessions) -> None:
        self._view, self._sessions = view, sessions

    @cached_property
    def _live(self) -> LiveParts:
        return LiveParts({name: self._maker(name) for name in _PARTS}, self._view.node.problems)

    def routes(self, api: Iterable[web.RouteDef]) -> list[web.RouteDef]:
        """List what is answered here; `api`: the local API's routes, of which the page offers those of `ACTIONS`."""
        actions = [
            web.route(route.method, PREFIX + route.path, route.handler)
            for route in api
            if (route.method, route.path) in ACTIONS
        ]
        return [
            web.post("/v1/ui", self.link),
            web.get(LINK_PATH, self.open),
            web.get(PREFIX, self.to_page),
            web.get(_ROOT, self.page),
            web.get(f"{PREFIX}/live", self.live),
            web.get(STYLE, self.static),
            web.get(f"{PREFIX}/page.js", self.static),
            web.get(f"{PREFIX}/icon.svg", self.static),
            *actions,
        ]

    def set_up(self, app: web.Application) -> None:
        """Give an application the templates."""
        aiohttp_jinja2.setup(
            app,
            loader=jinja2.PackageLoader("kvswap.daemon.page"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            filters=FILTERS,
        )
        self._app = app

    async def link(self, request: web.Request) -> web.Response:
        """Make a link that opens the page once, for who may call the API."""
        if not request.app[PORTS]:
            raise UsageError("this API has no port for a page", cause="it is part of another program")
        plain = request.query.get("plain") == "1"
        host = "127.0.0.1" if plain else self._sessions.host
        url = f"http://{host}:{request.app[PORTS][0]}{LINK_PATH}?once={self._sessions.invite()}"
        return reply(UiResult(url=url, seconds=LINK_SECONDS))

    async def open(self, request: web.Request) -> web.Response:
        """Spend a link: give the browser its session, and lead it to the page."""
        session = self._sessions.open(request.query.get("once", ""))
        if session is None:
            text = "This link was used, or is too old. Run: kvswap ui\n"
            return web.Response(status=401, text=text, headers=HEADERS)
        response = web.Response(status=303, headers=HEADERS | {"Location": _ROOT})
        response.set_cookie(self._sessions.cookie_name, session.cookie, path=PREFIX, httponly=True, samesite="Strict")
        return response

    async def to_page(self, request: web.Request) -> web.Response:
        """Redirect to the page."""
        return web.Response(status=308, headers=HEADERS | {"Location": _ROOT})

    async def page(self, request: web.Request) -> web.Response:
        """Show the page: all parts, or a page of the artifacts that were searched for."""
        query, number = request.query.get("q", "")[:_QUERY], request.query.get("page", "0")
        if not number.isascii() or not number.isdigit() or int(number) > _PAGES:
            raise UsageError("page is a number from 0")
        contents = {name: await self._contents(name) for name in _PARTS if name != "artifacts"}
        contents["artifacts"] = {"found": await self._view.artifacts(query, int(number))}
        html = self._render(
            "page.html",
            token=request[SESSION].token,
            whole=not query and number == "0",
            parts={name: self._render(f"{name}.html", **values) for name, values in contents.items()},
            groups=self._view.node.trust.groups.rows(),
            model=self._view.node.settings.model,
            version=__version__,
        )
        return web.Response(text=html, content_type="text/html", headers=HEADERS)

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Send the parts of the page as they change (server-sent events)."""
        if self._live.pages >= MOST_PAGES:
            raise QuotaExceeded(f"{MOST_PAGES} pages are open", cause="many tabs", hint="close some, and reload")
        headers = HEADERS | {"Content-Type": "text/event-stream"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        try:
            async for changed in self._live.follow():
                await response.write(b"data: %s\n\n" % json.dumps(changed).encode())
        except ConnectionError:
            pass  # the page was closed
        return response

    async def static(self, request: web.Request) -> web.Response:
        """Give the page's script or style."""
        name = request.path.rpartition("/")[2]
        data = await asyncio.to_thread((resources.files("kvswap.daemon.page") / "static" / name).read_bytes)
        return web.Response(body=data, content_type=_STATIC[name], charset="utf-8", headers=HEADERS)

    def _maker(self, name: str) -> Any:
        async def make() -> str:
            return self._render(f"{name}.html", **await self._contents(name))

        return make

    async def _contents(self, name: str) -> dict[str, Any]:
        """Gather what the template of a part shows."""
        view = self._view
        node = view.node
        if name == "artifacts":
            return {"found": await view.artifacts()}
        if name == "node":
            count = await asyncio.to_thread(node.store.count)
            return {"node": node, "count": count, "problems": dict(node.problems)}
        if name == "saved":
            return {"saved": node.savings.total}
        if name == "work":
            return {"work": view.work(), "running": view.running.count}
        if name == "peers":
            return {"found": view.peers()}
        if name == "trust":
            policy = node.trust.policy
            return {"own": node.identity.own, "publishers": policy.rows(), "banned": policy.bans()}
        if name == "groups":
            hosts = node.hosts.all()
            return {"groups": node.trust.groups.rows(), "hosts": hosts, "unusable": dict(node.hosts.unusable)}
        return {"lines": view.log()}

    def _render(self, template: str, **values: Any) -> str:
        environment = aiohttp_jinja2.get_env(self._app)
        return environment.get_template(template).render(standings=STANDINGS, in_words=in_words, **values)


_PARTS = ("node", "saved", "work", "artifacts", "peers", "trust", "groups", "log")
PORTS: web.AppKey[list[int]] = web.AppKey("ports", list)
"""The TCP port that the API listens at, once it does."""
