"""One peer as a source of chunks: over HTTPS where its bulk plane is reached, over libp2p streams where not.

The choice makes itself.  A peer is joined on a libp2p stream, which stays open: it carries the token,
and says from time to time what the peer has by now and who else is fetching.  Chunks then go to the
peer's HTTPS port at the address of that very connection; when no connection comes about there, or it
is a relayed peer, each chunk in flight has a libp2p stream of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from kvswap.core.errors import IntegrityError, KvswapError, PeerBusy, PeerError, TokenRefused
from kvswap.core.ids import Cid
from kvswap.exchange.node import Node
from kvswap.net import PeerAddress, Stream, messages
from kvswap.net.bulk import BulkTarget, check_record
from kvswap.net.bulk.client import BulkUnreachable
from kvswap.net.client import Session, from_bitmap

_WITHOUT_BULK_SECONDS = 600.0
OnBytes = Callable[[int], None]


class Source:
    """Joined to one peer for one artifact.  `open`, then `chunk` any number at once, then `close`."""

    def __init__(self, node: Node, peer: str, artifact: str, chunks: int) -> None:
        assert node.transport is not None  # noqa: S101 - fetching starts only with one
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
        """How chunks come: "https" or "libp2p"."""
        return "https" if self._target is not None else "libp2p"

    async def open(self, address: PeerAddress) -> None:
        """Connect and join.  Raises `PeerError`, `NotFound`, `IntegrityError` for a forged record."""
        await self._join(address)

    async def _join(self, address: PeerAddress) -> None:
        assert self._node.sessions is not None  # noqa: S101 - there is a transport
        if self._control is not None:
            await self._control.stream.reset()
            self._control = None
        bulk = self._node.settings.bulk and self._node.without_bulk.get(self.peer, 0.0) < time.monotonic()
        me = messages.Provider(self._transport.peer, self._transport.addresses()[:8])
        join = messages.Join(self._artifact, me, bulk)
        self._control, reply = await self._node.sessions.begin(address, join, messages.JoinReply)
        self._target = self._aim(reply.grant)
        self._heard(reply.have, reply.peers)

    def _aim(self, grant: messages.Grant | None) -> BulkTarget | None:
        host = self._transport.host_of(self.peer)
        if grant is None or host is None:
            return None
        check_record(grant.record, self.peer)
        return BulkTarget(self.peer, host, grant.record.port, grant.record.certificate, grant.token)

    def _heard(self, have: bytes, peers: list[messages.Provider]) -> None:
        self.has = {i for i, here in enumerate(from_bitmap(have, self._count)) if here}
        me = self._transport.peer
        self.others = [PeerAddress(p.peer, tuple(p.addresses)) for p in peers if p.peer not in (me, self.peer)]

    async def refresh(self) -> None:
        """What it has, and who else is at it, by now.  Raises `PeerError`."""
        async with self._asking:
            if self._control is None:
                raise PeerError(f"{self.peer} is not joined")
            reply = await self._control.ask(messages.Have(self._artifact), messages.HaveReply)
        self._heard(reply.have, reply.peers)

    async def chunk(self, cid: Cid, into: memoryview, on_bytes: OnBytes) -> Cid | None:
        """Fill `into`; what it holds now, where that was computed on the way.

        Not checked but for its length.  Raises `PeerError`, `NotFound`, `IntegrityError`.
        """
        for renewed in (False, True):
            target = self._target
            if target is None:
                break
            try:
                return await self._node.bulk.get(target, cid, into, on_bytes)
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
        """From now on over libp2p, and so for a while with this peer."""
        if self._target is target:
            self._target = None
            self._node.without_bulk[self.peer] = time.monotonic() + _WITHOUT_BULK_SECONDS
            self._node.events.add("without_bulk", peer=self.peer, reason=error.message)

    async def _renew(self, refused: BulkTarget) -> None:
        async with self._asking:
            if self._target is refused:  # others may have renewed it meanwhile
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
        """Leave; never raises."""
        for stream in self._idle:
            await stream.close()
        self._idle.clear()
        if self._control is not None:
            await self._control.stream.close()
            self._control = None
