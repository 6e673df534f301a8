"""The guard of the page, stricter than the API's, as a browser runs other people's pages beside it.

The host is the page's own or the loopback address, with this daemon's port; an `Origin` is exactly that, and what
changes something has one; what a browser says of where a request comes from is this page or the address bar.  Then a
session's cookie, and for changes the page's token in a header.
"""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from kvswap.daemon.page.sessions import PageSession, PageSessions, same

PREFIX = "/ui"
LINK_PATH = f"{PREFIX}/open"
STYLE = f"{PREFIX}/page.css"
CHANGE_HEADER = "Kvswap-Page"
SESSION: web.RequestKey[PageSession] = web.RequestKey("session", PageSession)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_READS = frozenset({"GET", "HEAD"})
_FROM_HERE = frozenset({"same-origin", "none"})


def is_page(path: str) -> bool:
    """Return True if a path belongs to the page."""
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def guard_page(sessions: PageSessions) -> Middleware:
    """Make the middleware that lets the page's own browsers in, and nobody else."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        why = _foreign(request, sessions)
        if why is not None:
            return _refuse(403, why)
        if request.path not in (LINK_PATH, STYLE):
            session = sessions.find(request.cookies.get(sessions.cookie_name, ""))
            if session is None:
                return _refuse(401, "This browser has no session here. Run: kvswap ui")
            if request.method not in _READS and not same(request.headers.get(CHANGE_HEADER, ""), session.token):
                return _refuse(403, "A change needs the token of the page. Reload the page.")
            request[SESSION] = session
        return await handler(request)

    return check


def _foreign(request: web.Request, sessions: PageSessions) -> str | None:
    """Say why a request is not from this page; None where it may be."""
    own = request.transport.get_extra_info("sockname") if request.transport is not None else None
    port = own[1] if isinstance(own, tuple) else None  # over the home's socket there is no page
    hosts = (f"{sessions.host}:{port}", f"127.0.0.1:{port}")
    host = request.headers.get("Host", "")
    if port is None or host not in hosts:
        return "The page answers under its own name. Run: kvswap ui"
    origin = request.headers.get("Origin")
    if origin is None and request.method not in _READS:
        return "A change comes from the page itself."
    if origin is not None and origin != f"http://{host}":
        return "Other pages may not call this one."
    if request.headers.get("Sec-Fetch-Site", "none") not in _FROM_HERE:
        return "Other pages may not lead here. Run: kvswap ui"
    return None


def _refuse(status: int, why: str) -> web.Response:
    return web.Response(status=status, text=why + "\n", headers=HEADERS)
