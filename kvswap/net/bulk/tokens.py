"""The bearer tokens of the bulk channel.

    token   = base64url(payload) "." base64url(mac)
    payload = msgpack [number, peer, expires]     expires: milliseconds of the issuer's monotonic clock
    mac     = HMAC-SHA256(secret of this process, payload)

Only the issuer checks a token, so its own secret and its own clock are enough: another node's clock may be days off,
and a token does not outlive the process.  A token is revoked when the libp2p stream ends on which it was issued;
replayed after that, it is refused.  It is valid for the artifacts that were requested on that stream, which the issuer
remembers; the newest few of them.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from kvswap.core import wire
from kvswap.core.bounded import Table
from kvswap.core.errors import KvswapError, PeerBusy, TokenRefused
from kvswap.core.limits import LIMITS, MIB

_ARTIFACTS = 256  # that one token is valid for
_LIVE = 2_048


@dataclass(slots=True)
class _Live:
    """A valid token: its holder, its expiry and its artifacts."""

    peer: str
    expires: float
    artifacts: dict[str, None] | None  # the newest last; None: everything


@dataclass(frozen=True, slots=True)
class Bearer:
    """The peer that a token was issued to, and the artifacts that it is valid for (None for all)."""

    peer: str
    artifacts: Collection[str] | None


class Tokens:
    """The tokens of one node, which issues, checks and revokes them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._secret = os.urandom(32)
        self._next = 1
        # The number of streams bounds them already; this bound holds even if that fails.
        self.table: Table[int, _Live] = Table("tokens", entries=_LIVE, nbytes=16 * MIB, size=lambda n, live: 7_000)
        self._held: Counter[str] = Counter()

    def issue(self, peer: str, seconds: float = LIMITS.token_seconds, artifacts: Collection[str] | None = None) -> str:
        """Issue a token to `peer` for these artifacts (None for all), valid for `seconds`.

        Raises `PeerBusy` if the peer, or all peers together, hold too many.
        """
        self._drop_expired()
        if self._held[peer] >= LIMITS.tokens_per_peer:
            raise PeerBusy(f"{peer} holds {self._held[peer]} tokens already")
        number, expires = self._next, self._clock() + seconds
        self._next += 1
        live = _Live(peer, expires, dict.fromkeys(artifacts) if artifacts is not None else None)
        if not self.table.put(number, live, peer, held=len(self.table) < _LIVE):
            raise PeerBusy("too many tokens are out")
        self._held[peer] += 1
        payload = wire.pack([number, peer, int(expires * 1000)])
        return f"{_text(payload)}.{_text(self._mac(payload))}"

    def check(self, token: str) -> str:
        """Return the peer that a token was issued to.  Raises `TokenRefused` with the reason if it is not valid."""
        return self.bearer(token).peer

    def bearer(self, token: str) -> Bearer:
        """Return the peer and the artifacts of a token.  Raises `TokenRefused` with the reason if it is not valid."""
        live = self._living(token)
        return Bearer(live.peer, tuple(live.artifacts) if live.artifacts is not None else None)

    def extend(self, token: str, artifacts: Collection[str]) -> None:
        """Make a token valid for these artifacts as well.  Raises `TokenRefused` if it is not valid."""
        live = self._living(token)
        if live.artifacts is not None:
            kept = {name: None for name in live.artifacts if name not in artifacts} | dict.fromkeys(artifacts)
            live.artifacts = dict.fromkeys(list(kept)[-_ARTIFACTS:])

    def _living(self, token: str) -> _Live:
        number, expires = self._read(token)
        if expires <= self._clock():
            raise TokenRefused("the token is expired", hint="join again for another")
        live = self.table.peek(number)
        if live is None:
            raise TokenRefused("the token is revoked: the stream it was handed over on has ended")
        return live

    def holds(self, token: str) -> bool:
        """Return True if a token is valid."""
        try:
            self.check(token)
        except TokenRefused:
            return False
        return True

    def revoke(self, token: str) -> None:
        """Revoke a token.  Idempotent; a token that is not valid is ignored."""
        try:
            number, _ = self._read(token)
        except TokenRefused:
            return
        self._drop(number)

    def revoke_all(self, peer: str) -> None:
        """Revoke all tokens of a peer."""
        for number in [n for n, live in self.table.items() if live.peer == peer]:
            self._drop(number)

    def _read(self, token: str) -> tuple[int, float]:
        refused = TokenRefused(
            "not a token of this node", cause="another node's, one from before a restart, or a forgery"
        )
        payload_text, dot, mac_text = token.partition(".")
        if not dot or len(token) > 512:
            raise refused
        try:
            payload, mac = _bytes(payload_text), _bytes(mac_text)
        except (binascii.Error, ValueError):
            raise refused from None
        if not hmac.compare_digest(mac, self._mac(payload)):
            raise refused
        try:
            number, _peer, expires = wire.convert(wire.parse(payload), list)
        except (KvswapError, ValueError):
            raise refused from None
        return int(number), int(expires) / 1000

    def _mac(self, payload: bytes) -> bytes:
        return hmac.digest(self._secret, payload, "sha256")

    def _drop(self, number: int) -> None:
        held = self.table.pop(number)
        if held is not None:
            self._held[held.peer] -= 1
            self._held += Counter()

    def _drop_expired(self) -> None:
        now = self._clock()
        for number in [n for n, live in self.table.items() if live.expires <= now]:
            self._drop(number)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
