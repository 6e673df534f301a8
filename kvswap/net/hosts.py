"""The hosts that invited this node: one file for each invitation, and their offers until these expire."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from kvswap.core.errors import IntegrityError, KvswapError, NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.net.dialling import Scope, host_and_port, scope_of
from kvswap.net.host_connection import HostConnection, Invitation
from kvswap.trust.hosting import SignedOffer, check_life, read_offer
from kvswap.trust.keys import private_text, write_private

_PLAIN = "plain"


def _stored(text: str) -> Invitation:
    """Read an invitation file.  Raises `UsageError` if it is malformed, or uses http without the user's consent.

    Files from before that consent was recorded may use http for a host on this machine.
    """
    first, _, rest = text.strip().partition("\n")
    invitation = Invitation.from_text(first, plain=True)
    host, _port = host_and_port(invitation.url)
    near = host == "localhost" or scope_of(host) is Scope.LOOPBACK
    return invitation if near or rest.strip() == _PLAIN else Invitation.from_text(first)


class Hosts:
    """The invitations of a node: one file each, mode 0600, as they hold secrets."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writing = threading.Lock()
        self._known: dict[str, Invitation] = {}
        self.unusable: dict[str, str] = {}  # PeerId -> what is wrong with its stored invitation
        for path in sorted(directory.glob("*.host")):
            try:
                invitation = _stored(private_text(path))
            except (KvswapError, OSError, ValueError) as error:
                self.unusable[path.stem] = str(error)
            else:
                self._known[invitation.peer] = invitation
        self._connections: dict[str, HostConnection] = {}
        self._offers: dict[str, SignedOffer] = {}

    def add(self, text: str, *, plain: bool = False) -> Invitation:
        """Store an invitation, and return it; `plain` says that the user accepts http.  Blocks.

        Raises `UsageError` if it is malformed, or the node knows too many hosts.
        """
        with self._writing:
            return self._add(Invitation.from_text(text, plain=plain), plain)

    def _add(self, invitation: Invitation, plain: bool) -> Invitation:
        if len(self._known) >= LIMITS.hosts and invitation.peer not in self._known:
            raise UsageError(f"a node knows {LIMITS.hosts} hosts at most", hint="kvswap host leave PEER")
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = invitation.to_text() + "\n" + (f"{_PLAIN}\n" if plain else "")
        write_private(self._directory / f"{invitation.peer}.host", kept)
        self._forget(invitation.peer)
        self.unusable.pop(invitation.peer, None)
        self._known[invitation.peer] = invitation
        return invitation

    def remove(self, peer: str) -> None:
        """Forget a host and delete its file.  Blocks.  Raises `NotFound` for an unknown host."""
        with self._writing:
            known = peer in self.unusable or self.get(peer)
            if known:
                (self._directory / f"{peer}.host").unlink(missing_ok=True)
            self._forget(peer)
            self.unusable.pop(peer, None)
            self._known.pop(peer, None)

    def _forget(self, peer: str) -> None:
        self._connections.pop(peer, None)
        self._offers.pop(peer, None)

    def get(self, peer: str) -> Invitation:
        """Return the invitation of a host.  Raises `NotFound` for a host that has not invited this node."""
        try:
            return self._known[peer]
        except KeyError:
            raise NotFound(
                f"{peer[:80]} has not invited this node", cause="a host answers to whom it has invited",
                hint="kvswap host known; kvswap host join FILE",
            ) from None  # fmt: skip

    def all(self) -> list[Invitation]:
        """Return the invitations of all known hosts."""
        return list(self._known.values())

    def connection(self, peer: str) -> HostConnection:
        """Return the connection to a host, which is kept between requests.  Raises `NotFound` for an unknown host."""
        invitation = self.get(peer)
        return self._connections.setdefault(peer, HostConnection(invitation))

    async def offer(self, peer: str, *, fresh: bool = False) -> SignedOffer:
        """Return a host's signed offer: the cached one until it expires, or a `fresh` one.

        Raises `NotFound` for an unknown host, `PeerError`, `IntegrityError` or `MalformedManifest` if the offer is not
        received or not the host's, `Untrusted` if it has expired.
        """
        known = self._offers.get(peer)
        if fresh or known is None or known.offer.expires < time.time():
            known = read_offer(await self.connection(peer).offer())
            if known.offer.host != peer:
                raise IntegrityError(f"{peer} gave the offer of {known.offer.host}", cause="a lying host")
            check_life(known.offer, time.time())
            self._offers[peer] = known
        return known
