"""Admission control: who may ask, and how much.

The most tokens that a request may use are reserved before it runs; afterwards it is charged what it used.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kvswap.core.errors import QuotaExceeded, TokenRefused
from kvswap.core.limits import LIMITS
from kvswap.host.usage_log import HostClient, UsageLog, today, until_tomorrow


@dataclass(slots=True)
class Admitted:
    """An admitted request, with the tokens that are reserved for it."""

    admission: Admission
    client: HostClient
    tokens: int = 0

    def reserve(self, tokens: int) -> None:
        """Reserve the most tokens that the request may use, before anything is computed.  Raises `QuotaExceeded`."""
        self.admission.reserve(self.client, tokens)
        self.tokens += tokens


class Admission:
    """The admission control of one host process.

    `concurrent` is the most requests at a time, of all clients together.
    """

    def __init__(self, usage_log: UsageLog, secret: bytes, concurrent: int) -> None:
        self._usage_log, self._secret, self._concurrent = usage_log, secret, concurrent
        self._running: Counter[str] = Counter()
        self._reserved: Counter[str] = Counter()
        self._bodies: Counter[str] = Counter()

    def client(self, authorization: str) -> HostClient:
        """Return the client whose token an `Authorization` header bears.  Raises `TokenRefused` if there is none."""
        scheme, _, token = authorization.partition(" ")
        found = self._usage_log.client(token.strip()) if scheme.lower() == "bearer" and len(token) <= 256 else None
        if found is None:
            raise TokenRefused(
                "the token is missing, revoked, or not of this host",
                cause="a host answers to those whom it has invited",
                hint="kvswap host join FILE",
            )
        return found

    def salt(self, client: HostClient) -> str:
        """Return the salt that separates a client's prefix cache from all others'.

        It is derived from the host's own secret, so that no client can choose it.
        """
        return hmac.digest(self._secret, client.id.encode(), "sha256").hex()

    @contextmanager
    def reading(self, client: HostClient) -> Iterator[None]:
        """Count a request while its body is received, apart from running requests, so that a slow sender delays nobody.

        Raises `QuotaExceeded` if the client has too many.
        """
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
        """Admit a request for the duration of the block.

        Raises `QuotaExceeded` if the host or the client has too many requests running, or the client's tokens of the
        day are used up.
        """
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
        """Reserve tokens of a client's day; see `Admitted.reserve`."""
        self._require_left(client, tokens)
        self._reserved[client.id] += tokens

    def _require_left(self, client: HostClient, tokens: int) -> None:
        if not client.daily_tokens:
            return
        used = self._usage_log.used(client.id, today()) + self._reserved[client.id]
        if used + tokens > client.daily_tokens:
            raise QuotaExceeded(
                f"this needs up to {tokens} tokens, and of {client.daily_tokens} a day {used} are used or reserved",
                retry_after=until_tomorrow(),
            )
