"""Who may see the page: a browser that was opened by a link which works once, and then has a cookie.

The link's token is spent by its first use.  A browser sends cookies to every port of a host, so that other programs on
this machine would be told ours by a visit to them: the page has a host name of its own, made anew with each daemon,
under `localhost`, which browsers resolve to this machine by themselves.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from kvswap.core.bounded import Table

LINK_SECONDS = 600.0
_LINKS = 16
_SESSIONS = 16


@dataclass(frozen=True, slots=True)
class PageSession:
    """A browser that has the page open: its cookie, and the token that each change has to carry."""

    cookie: str
    token: str


class PageSessions:
    """The links that were given out, and the browsers that came by one.  They end with the daemon."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.host = f"kvswap-{secrets.token_hex(8)}.localhost"
        self.cookie_name = f"kvswap-{secrets.token_hex(4)}"
        self._now = now
        self._links: Table[str, float] = Table("page links", entries=_LINKS)
        self._sessions: Table[str, PageSession] = Table("page sessions", entries=_SESSIONS)

    def invite(self) -> str:
        """Return a token that opens one session within ten minutes."""
        token = secrets.token_urlsafe(32)
        self._links.put(token, self._now() + LINK_SECONDS)
        return token

    def open(self, token: str) -> PageSession | None:
        """Spend a token and return a new session; None where it is unknown, spent or too old."""
        ends = self._links.pop(token)
        if ends is None or self._now() > ends:
            return None
        session = PageSession(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
        self._sessions.put(session.cookie, session)
        return session

    def find(self, cookie: str) -> PageSession | None:
        """Return the session of a cookie; None without one."""
        return self._sessions.get(cookie)


def same(given: str, right: str) -> bool:
    """Compare two secrets in constant time, whatever a header may hold."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), right.encode())
