"""The hosts that invited this node: a file each, and what they offer while it holds."""

from __future__ import annotations

import time
from pathlib import Path

from kvswap.core.errors import IntegrityError, NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.net.reads import HostConnection, Invitation
from kvswap.trust.hosting import SignedOffer, check_life, read_offer
from kvswap.trust.keys import private_text, write_private


class Hosts:
    """The invitations of a node: a file each, mode 0600, as they hold secrets."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        texts = (private_text(path) for path in sorted(directory.glob("*.host")))
        self._known = {i.peer: i for i in map(Invitation.from_text, texts)}
        self._connections: dict[str, HostConnection] = {}
        self._offers: dict[str, SignedOffer] = {}

    def add(self, text: str) -> Invitation:
        """Raises `UsageError`."""
        invitation = Invitation.from_text(text)
        if len(self._known) >= LIMITS.hosts and invitation.peer not in self._known:
            raise UsageError(f"a node knows {LIMITS.hosts} hosts at most", hint="kvswap host leave PEER")
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._directory / f"{invitation.peer}.host", invitation.to_text() + "\n")
        self._forget(invitation.peer)
        self._known[invitation.peer] = invitation
        return invitation

    def remove(self, peer: str) -> None:
        """Raises `NotFound`."""
        invitation = self.get(peer)
        (self._directory / f"{invitation.peer}.host").unlink(missing_ok=True)
        self._forget(peer)
        del self._known[peer]

    def _forget(self, peer: str) -> None:
        self._connections.pop(peer, None)
        self._offers.pop(peer, None)

    def get(self, peer: str) -> Invitation:
        """Raises `NotFound`."""
        try:
            return self._known[peer]
        except KeyError:
            raise NotFound(
                f"{peer[:80]} has not invited this node", cause="a host answers to whom it has invited",
                hint="kvswap host join INVITATION",
            ) from None  # fmt: skip

    def all(self) -> list[Invitation]:
        return list(self._known.values())

    def connection(self, peer: str) -> HostConnection:
        """Raises `NotFound`."""
        invitation = self.get(peer)
        return self._connections.setdefault(peer, HostConnection(invitation))

    async def offer(self, peer: str, *, fresh: bool = False) -> SignedOffer:
        """What a host offers, while that holds.  Raises `PeerError`, `IntegrityError`, `Untrusted`."""
        known = self._offers.get(peer)
        if fresh or known is None or known.offer.expires < time.time():
            known = read_offer(await self.connection(peer).offer())
            if known.offer.host != peer:
                raise IntegrityError(f"{peer} gave the offer of {known.offer.host}", cause="a lying host")
            check_life(known.offer, time.time())
            self._offers[peer] = known
        return known
