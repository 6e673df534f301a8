"""The peers that a transfer may ask: who is known to it, how often each was tried, and why it failed.

A peer that sends anything but what it was asked for, or nothing, is left alone for a while; what cannot be reached is
held against its addresses, and what this node failed at against nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from kvswap.core.errors import IntegrityError, KvswapError, NetworkTimeout, P2pDown, PeerError
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import Node
from kvswap.exchange.transfer.sources import Source
from kvswap.net import PeerAddress, Unreachable

STARVED_SECONDS = 12.0  # nothing under way and nobody to ask: the transfer is given up
_TRIES = 3  # of one peer in one transfer
_DOWN_MOST = 6  # tries that our own network part may end
_CANDIDATES = 4 * LIMITS.peers_per_transfer  # peers kept in mind


@dataclass(slots=True)
class AskedPeer:
    """A peer that may be asked; `source` while it is."""

    address: PeerAddress
    tries: int = 0
    not_before: float = 0.0
    source: Source | None = None
    busy: bool = False  # a task works with it: dialling, joining, asking

    @property
    def peer(self) -> str:
        """The peer's PeerId."""
        return self.address.peer


class AskedPeers:
    """The peers of one transfer.  All methods run on the node's loop, and none waits."""

    def __init__(self, node: Node, artifact: str, most_per_gb: float) -> None:
        """Make an empty table; whoever asks for more than `most_per_gb`, in US dollars, is left alone."""
        self._node = node
        self._artifact = artifact
        self._most_per_gb = most_per_gb
        self._peers: dict[str, AskedPeer] = {}
        self._invalid: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._down = 0  # tries that our own part in the network ended

    def add(self, addresses: Iterable[PeerAddress]) -> bool:
        """Add peers that may be asked, and return True if one is new.

        The table is bounded: those that were tried in vain make way for others.
        """
        me, added = self._node.transport.peer, False
        for address in addresses:
            peer = address.peer
            if peer == me or peer in self._peers or self._node.peers.price(peer) > self._most_per_gb:
                continue
            if self._node.network.address_book.reachable(address) is None:
                continue  # it led nowhere a moment ago
            if len(self._peers) >= _CANDIDATES:
                spent = (p for p, entry in self._peers.items() if entry.tries >= _TRIES and not entry.busy)
                if (forgotten := next(spent, None)) is None:
                    break
                del self._peers[forgotten]
            rest = self._node.peers.backoff_seconds(peer)
            self._peers[peer] = AskedPeer(address, 0, time.monotonic() + rest if rest else 0.0)
            added = True
        return added

    def begin(self, now: float) -> list[AskedPeer]:
        """Return the peers to be asked from now on, as many as there may be at once, and count a try of each."""
        chosen: list[AskedPeer] = []
        free = LIMITS.peers_per_transfer - sum(entry.busy for entry in self._peers.values())
        for entry in self._peers.values():
            if len(chosen) < free and not entry.busy and entry.tries < _TRIES and entry.not_before <= now:
                entry.tries += 1
                entry.busy = True
                chosen.append(entry)
        return chosen

    @property
    def sources(self) -> list[Source]:
        """The peers that are connected."""
        return [entry.source for entry in self._peers.values() if entry.source is not None]

    @property
    def dialling(self) -> bool:
        """True while a peer is being connected to."""
        return any(entry.busy and entry.source is None for entry in self._peers.values())

    def hopeless(self, now: float) -> bool:
        """Return True if nobody is being asked, and nobody may be soon."""
        entries = self._peers.values()
        return not any(e.busy or (e.tries < _TRIES and e.not_before < now + STARVED_SECONDS) for e in entries)

    # -- how they did ------------------------------------------------------------------------------

    def failed(self, entry: AskedPeer, error: KvswapError, *, blame: bool) -> None:
        """Note that a peer failed, and when it may be tried again; `blame`: hold it against it beyond this transfer."""
        peer = entry.peer
        self._reasons[peer] = error.message
        if isinstance(error, IntegrityError):
            entry.tries = _TRIES
            self._invalid.add(peer)
            self._node.peers.sent_invalid_data(peer, error.message, artifact=self._artifact)
            return
        self._down += isinstance(error, P2pDown)
        if not isinstance(error, Unreachable) and blame:
            self._node.peers.blame(peer, error)
        if isinstance(error, NetworkTimeout):
            entry.tries = max(entry.tries, _TRIES - 1)  # each costs a whole time-out: once more, not twice
        entry.not_before = time.monotonic() + min(4.0, 0.5 * 2**entry.tries)

    def block(self, peer: str) -> None:
        """Ask a peer for nothing more."""
        if (entry := self._peers.get(peer)) is not None:
            entry.tries = _TRIES
            self._reasons[peer] = f"{peer} is blocked"

    def allow_retry(self, peer: str) -> None:
        """Try once more whom no try reached, as it answers now."""
        entry = self._peers.get(peer)
        if self._down > _DOWN_MOST:
            return  # for which no peer is the way out
        if entry is not None and entry.tries >= _TRIES and peer not in self._invalid and not entry.busy:
            entry.tries, entry.not_before = _TRIES - 1, time.monotonic()

    def failure(self, done: str) -> KvswapError:
        """Make the error of a transfer that stopped; `done` says what is here."""
        if self._invalid:
            who = next((name for name in self._invalid if name in self._node.origins), "a peer")
            return IntegrityError(
                f"{who} sent bytes that are not what the manifest says, and nobody else has them; {done}",
                cause="a broken or malicious peer",
                hint="kvswap peers",
            )
        reasons = "; ".join(dict.fromkeys(self._reasons.values())) or "no peer has the rest"
        return PeerError(
            f"the transfer stopped: {reasons[:300]}; {done}",
            cause="this node's own network part ended" if self._down else "the peers went away",
            hint=f"kvswap fetch {self._artifact}  resumes",
        )
