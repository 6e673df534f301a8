"""Sources of chunks: origins, and peers, over HTTPS where that is reached, over libp2p streams where not.

The choice makes itself.  A peer is joined on a libp2p stream, which stays open: it carries the bulk ticket,
and says from time to time what the peer has by now and who else is fetching.  Chunks then come from the
peer's HTTPS port at the address of that very connection; when no connection comes about there, or it
is a relayed peer, each chunk in flight has a libp2p stream of its own.  A peer where the artifact was
found just now, whole, handed over a ticket with its answer, and is joined while its chunks come already.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

from kvswap.core.errors import IntegrityError, KvswapError, PeerBusy, TokenRefused
from kvswap.core.ids import Cid
from kvswap.exchange.node.node import Node
from kvswap.exchange.transfer.origin_source import OriginSource
from kvswap.net import PeerAddress, Stream, messages
from kvswap.net.bulk import BulkTarget, check_record
from kvswap.net.bulk.client import BulkUnreachable
from kvswap.net.client import Session, from_bitmap
from kvswap.net.dialling import may_reach
from kvswap.origins.port import OnBytes

_PRECONNECTED_PEERS = 4  # peers


class Source(Protocol):
    """A giver of the chunks of one artifact: `open`, then `chunk` any number at once, then `close`."""

    @property
    def peer(self) -> str:
        """The PeerId, or the URL of an origin."""

    @property
    def kind(self) -> str:
        """The way that chunks come: "https", "libp2p" or "origin"."""

    @property
    def joined(self) -> bool:
        """True if it says by itself, when it is asked, what it has by now."""

    @property
    def has(self) -> set[int]:
        """The indices of the files that it has."""

    @property
    def others(self) -> list[PeerAddress]:
        """Further peers that it names."""

    async def open(self, address: PeerAddress) -> None:
        """Connect to it.  Raises `Unreachable`, `PeerError`, `NotFound`, `IntegrityError`."""

    async def refresh(self) -> None:
        """Ask what it has by now.  Raises as `open` does."""

    async def chunk(self, cid: Cid, into: memoryview, on_bytes: OnBytes) -> Cid | None:
        """Fill `into` with a chunk; returns the CID of the received bytes where it was computed on the way, else None.

        Nothing is checked but the length.  Raises `PeerError`, `NotFound`, `IntegrityError`.
        """

    async def close(self) -> None:
        """End the connection; never raises."""


def source_of(node: Node, peer: str, artifact: str, chunks: int) -> Source:
    """Return the source of this name, for an artifact of so many files."""
    if peer in node.origins:
        return OriginSource(node.origins.get(peer), chunks)
    return PeerSource(node, peer, artifact, chunks)


def preconnect(node: Node, peers: Sequence[str], artifact: str) -> None:
    """Connect to peers that may be asked in a moment, while it is decided whether they are.  Best effort."""
    for peer in [peer for peer in peers if peer not in node.origins][:_PRECONNECTED_PEERS]:
        with contextlib.suppress(KvswapError):
            if (target := _aim(node, peer, node.peers.bulk_tickets.of(peer, artifact))) is not None:
                node.network.bulk.preconnect(target)


def _aim(node: Node, peer: str, ticket: messages.BulkTicket | None) -> BulkTarget | None:
    """Return where a peer's chunks are had over HTTPS; None for nowhere.

    Raises `IntegrityError` for a forged record.
    """
    host = node.transport.host_of(peer)
    if ticket is None or host is None:
        return None
    check_record(ticket.record, peer)
    if not may_reach(host, ticket.record.port):
        return None
    return BulkTarget(peer, host, ticket.record.port, ticket.record.certificate, ticket.token)


class PeerSource:
    """The connection to one peer for one artifact."""

    def __init__(self, node: Node, peer: str, artifact: str, chunks: int) -> None:
        self._node = node
        self._transport = node.transport
        self.peer = peer
        self._artifact = artifact
        self._count = chunks
        self._control: Session | None = None
        self._asking = asyncio.Lock()
        self._target: BulkTarget | None = None
        self._idle: list[Stream] = []
        self.has: set[int] = set()
        self.others: list[PeerAddress] = []

    @property
    def kind(self) -> str:
        """The way that chunks come: "https" or "libp2p"."""
        return "https" if self._target is not None else "libp2p"

    @property
    def joined(self) -> bool:
        """True if this reader is a member of the artifact's swarm at the peer; `refresh` makes it one."""
        return self._control is not None

    async def open(self, address: PeerAddress) -> None:
        """Connect to the peer, and join the artifact's swarm there unless a bulk ticket is held already.

        Raises `Unreachable`, `PeerError`, `NotFound`, `IntegrityError` for a forged record.
        """
        if self._wants_bulk:
            self._target = _aim(self._node, self.peer, self._node.peers.bulk_tickets.of(self.peer, self._artifact))
        if self._target is not None:
            self.has = set(range(self._count))
        else:
            await self._join(address)

    @property
    def _wants_bulk(self) -> bool:
        return self._node.settings.bulk and self._node.peers.neighbours.has_bulk(self.peer)

    async def _join(self, address: PeerAddress) -> None:
        if self._control is not None:
            await self._control.stream.reset()
            self._control = None
        me = messages.Provider(self._transport.peer, self._transport.addresses()[:8])
        join = messages.Join(self._artifact, me, self._wants_bulk)
        await self._node.network.reach(address)
        self._control, reply = await self._node.network.sessions.begin(address, join, messages.JoinReply)
        # Meanwhile its bulk channel may have turned out to be of no use.
        self._target = _aim(self._node, self.peer, reply.grant) if self._wants_bulk else None
        self._update_peers(reply.have, reply.peers)

    def _update_peers(self, have: bytes, peers: list[messages.Provider]) -> None:
        self.has = {i for i, here in enumerate(from_bitmap(have, self._count)) if here}
        me, sender = self._transport.peer, self._transport.host_of(self.peer)
        self.others = [PeerAddress(p.peer, tuple(p.addresses), sender) for p in peers if p.peer not in (me, self.peer)]

    async def refresh(self) -> None:
        """Ask what the peer has by now, and which others are fetching.  Raises as `open` does."""
        async with self._asking:
            if self._control is None:
                await self._join(PeerAddress(self.peer))
                return
            reply = await self._control.ask(messages.Have(self._artifact), messages.HaveReply)
        self._update_peers(reply.have, reply.peers)

    async def chunk(self, cid: Cid, into: memoryview, on_bytes: OnBytes) -> Cid | None:
        """Fill `into` with a chunk; returns the CID of the received bytes where it was computed on the way, else None.

        Nothing is checked but the length.  Raises `PeerError`, `NotFound`, `IntegrityError`.
        """
        for renewed in (False, True):
            target = self._target
            if target is None:
                break
            try:
                return await self._node.network.bulk.get(target, cid, into, on_bytes)
            except BulkUnreachable as error:
                self._without_bulk(target, error)
            except TokenRefused as error:
                if renewed:
                    self._without_bulk(target, error)
                else:
                    await self._renew(target)
        await self._streamed(cid, into, on_bytes)
        return None

    def _without_bulk(self, target: BulkTarget, error: KvswapError) -> None:
        """Use libp2p from now on, and for a while for all that comes from this peer."""
        if self._target is not None and self._target.endpoint == target.endpoint:
            self._target = None
            self._node.peers.neighbours.without_bulk(self.peer)
            self._node.events.add("without_bulk", peer=self.peer, reason=error.message)

    async def _renew(self, refused: BulkTarget) -> None:
        async with self._asking:
            if self._target == refused:  # others may have renewed it meanwhile
                await self._join(PeerAddress(self.peer))

    async def _streamed(self, cid: Cid, into: memoryview, on_bytes: OnBytes) -> None:
        stream = self._idle.pop() if self._idle else await self._transport.open(self.peer)
        try:
            data = await Session(stream).chunk(str(cid), len(into))
        except (KvswapError, asyncio.CancelledError) as error:
            if isinstance(error, PeerBusy):
                self._idle.append(stream)
            else:
                await stream.reset()
            raise
        self._idle.append(stream)
        if len(data) != len(into):
            raise IntegrityError(f"{self.peer} sent {len(data)} bytes for chunk {cid} of {len(into)}")
        into[:] = data
        on_bytes(len(data))

    async def close(self) -> None:
        """Leave the swarm and close the streams; never raises."""
        for stream in self._idle:
            await stream.close()
        self._idle.clear()
        if self._control is not None:
            await self._control.stream.close()
            self._control = None
