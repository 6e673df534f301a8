"""Who may ask, and how much.  What a request may take at most is reserved before it runs, and what it took is kept."""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvswap.core.errors import QuotaExceeded, TokenRefused
from kvswap.core.limits import LIMITS
from kvswap.host.journal import HostClient, Journal, today, until_tomorrow


@dataclass(slots=True)
class Admitted:
    """One request."""

    admission: Admission
    client: HostClient
    tokens: int = 0

    def reserve(self, tokens: int) -> None:
        """What it may take at most, before anything is computed.  Raises `QuotaExceeded`."""
        self.admission.reserve(self.client, tokens)
        self.tokens += tokens


class Admission:
    """Of one host process.  `concurrent`: requests at a time, of all clients together."""

    def __init__(self, journal: Journal, secret: bytes, concurrent: int) -> None:
        self._journal, self._secret, self._concurrent = journal, secret, concurrent
        self._running: Counter[str] = Counter()
        self._reserved: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()

    def client(self, authorization: str) -> HostClient:
        """Of an `Authorization` header.  Raises `TokenRefused`."""
        scheme, _, token = authorization.partition(" ")
        found = self._journal.client(token.strip()) if scheme.lower() == "bearer" and len(token) <= 256 else None
        if found is None:
            raise TokenRefused(
                "the token is missing, revoked, or not of this host",
                cause="a host answers to those whom it has invited",
                hint="kvswap host join FILE",
            )
        return found

    def salt(self, client: HostClient) -> str:
        """What keeps a client's cache apart from all others'; the host's own secret, which no client can choose."""
        return hmac.digest(self._secret, client.id.encode(), "sha256").hex()

    @contextmanager
    def reading(self, client: HostClient) -> Iterator[None]:
        """While a request's body comes: who sends slowly is in nobody else's way.  Raises `QuotaExceeded`."""
        if self._bodies[client.id] >= LIMITS.host_bodies:
            raise QuotaExceeded(f"{LIMITS.host_bodies} requests of yours have not come whole", retry_after=1.0)
        self._bodies[client.id] += 1
        try:
            yield
        finally:
            self._bodies[client.id] -= 1
            self._bodies += Counter()

    @contextmanager
    def admit(self, client: HostClient) -> Iterator[Admitted]:
        """While a request is looked at and runs; not where the day is used up already.  Raises `QuotaExceeded`."""
        name = client.id
        if self._running.total() >= self._concurrent:
            raise QuotaExceeded("the host answers as many requests as it can", retry_after=1.0)
        if client.concurrent and self._running[name] >= client.concurrent:
            raise QuotaExceeded(f"{client.concurrent} requests of yours are under way", retry_after=1.0)
        self._require_left(client, 1)
        admitted = Admitted(self, client)
        self._running[name] += 1
        try:
            yield admitted
        finally:
            self._running[name] -= 1
            self._reserved[name] -= admitted.tokens
            self._running += Counter()
            self._reserved += Counter()

    def reserve(self, client: HostClient, tokens: int) -> None:
        """See `Admitted.reserve`."""
        self._require_left(client, tokens)
        self._reserved[client.id] += tokens

    def _require_left(self, client: HostClient, tokens: int) -> None:
        if not client.daily_tokens:
            return
        used = self._journal.used(client.id, today()) + self._reserved[client.id]
        if used + tokens > client.daily_tokens:
            raise QuotaExceeded(
                f"this needs up to {tokens} tokens, and of {client.daily_tokens} a day {used} are used or reserved",
                retry_after=until_tomorrow(),
            )
