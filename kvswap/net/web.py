"""HTTP to where the user typed a URL, and on from there: each redirect is judged by the rule of `net.dialling`.

What the user typed is not restricted.  Where a server sends us further is that server's word: it leads to the public
internet, or to the kind of network that the server itself is on; from https to https only; never to a port below 1024
other than those of the web, and never with a user in the URL.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urljoin, urlsplit

import aiohttp
import aiohttp.abc

from kvswap.core.errors import OriginError
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable
from kvswap.net.dialling import BY_HAND, Scope, may_follow, plain_host, scope_of

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WEB_PORTS = frozenset({80, 443})
_CONNECT_SECONDS = 10.0
_BUFFER_BYTES = 256 * 1024
_CONNECTIONS = 16  # to one host, kept open
_NAMES = 256  # of hosts whose addresses are remembered


class JudgedResolver(aiohttp.ThreadedResolver):
    """A resolver that leaves out addresses to which nobody may be led on the word of `sender`."""

    def __init__(self, sender: str = BY_HAND) -> None:
        super().__init__()
        self._sender = sender
        self._seen: dict[str, set[str]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[aiohttp.abc.ResolveResult]:
        """Resolve a name.  Raises `OSError` if no address is left."""
        found = [a for a in await super().resolve(host, port, family) if reachable(a["host"], self._sender)]
        if not found:
            raise OSError(f"{host} is nowhere that this may lead to")
        if len(self._seen) >= _NAMES:
            self._seen.clear()
        self._seen.setdefault(host, set()).update(a["host"] for a in found)
        return found

    def address(self, host: str) -> str:
        """Return an address of a host that was connected to; empty where its addresses are on several networks."""
        seen = {host} if plain_host(host) is not None else self._seen.get(host, set())
        return next(iter(seen)) if len({scope_of(address) for address in seen}) == 1 else ""


def reachable(host: str, sender: str) -> bool:
    """Return True if an IP address may be connected to: typed by the user, or on the word of who is at `sender`."""
    return scope_of(host) is not Scope.NOWHERE if sender == BY_HAND else may_follow(host, sender)


class WebClient:
    """Connections to one place on the web and to where it redirects, kept open between requests."""

    def __init__(self) -> None:
        # By whose word they are made: one for each kind of network.
        self._sessions: dict[str, tuple[aiohttp.ClientSession, JudgedResolver]] = {}

    def _session(self, sender: str) -> tuple[aiohttp.ClientSession, JudgedResolver]:
        key = sender if sender == BY_HAND else scope_of(sender).value
        if key not in self._sessions:
            resolver = JudgedResolver(sender)
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(resolver=resolver, limit_per_host=_CONNECTIONS),
                auto_decompress=False,
                read_bufsize=_BUFFER_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._sessions[key] = (session, resolver)
        return self._sessions[key]

    @asynccontextmanager
    async def get(self, url: str, headers: Mapping[str, str], seconds: float) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a GET and follow its redirects; gives the response whose body is still to be read.

        Raises `OriginError` for a redirect that may not be followed, and what aiohttp raises.
        """
        timeout = aiohttp.ClientTimeout(
            total=seconds, sock_connect=_CONNECT_SECONDS, sock_read=min(seconds, LIMITS.stall_seconds)
        )
        headers = {"Accept-Encoding": "identity", **headers}
        sender = BY_HAND
        for _ in range(LIMITS.origin_redirects + 1):
            host = urlsplit(url).hostname or ""
            if plain_host(host) is not None and not reachable(host, sender):  # aiohttp resolves no literal address
                raise _refused(url, "no server may lead there")
            session, resolver = self._session(sender)
            async with session.get(url, headers=headers, timeout=timeout, allow_redirects=False) as response:
                if response.status not in _REDIRECTS or "Location" not in response.headers:
                    yield response
                    return
                sender = resolver.address(host)
                url = _further(url, response.headers["Location"])
        raise _refused(url, "too many redirects")

    async def close(self) -> None:
        """Close all connections."""
        for session, _ in self._sessions.values():
            await session.close()
        self._sessions.clear()


def _further(url: str, location: str) -> str:
    """Return the URL that a redirect names.  Raises `OriginError` for one that is not followed whoever says so."""
    further = urljoin(url, location)
    try:
        parts = urlsplit(further)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise _refused(location, "it is no URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or len(further) > 8192:
        raise _refused(further, "it is no URL of the web")
    if parts.scheme == "http" and url.startswith("https:"):
        raise _refused(further, "it leads from https to http")
    if parts.username is not None or (port < 1024 and port not in _WEB_PORTS):
        raise _refused(further, "it names a user, or a port that is not of the web")
    return further


def _refused(url: str, why: str) -> OriginError:
    return OriginError(
        f"a redirect to {printable(url)[:120]} is not followed: {why}", cause="the server there sends readers elsewhere"
    )
