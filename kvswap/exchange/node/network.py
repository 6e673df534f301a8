"""A node's side of the network: requests to peers, announcements, and what peers say of others."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from kvswap.core.errors import KvswapError
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.address_book import AddressBook
from kvswap.exchange.node.background import Background
from kvswap.exchange.node.events import EventLog
from kvswap.exchange.node.origins import Origins
from kvswap.exchange.node.peers import Peers
from kvswap.exchange.node.permission import Permission
from kvswap.exchange.node.prefix_index import PrefixIndexes
from kvswap.exchange.node.providing import Providing
from kvswap.exchange.node.swarms import Swarms
from kvswap.net import PeerAddress, Transport, Unreachable, messages
from kvswap.net.bulk import BulkClient
from kvswap.net.client import Sessions
from kvswap.net.offline import Offline
from kvswap.store import Store

T = TypeVar("T")


class Network:
    """The network as one node sees it; where p2p is off, its transport has no peers (`net.offline`)."""

    def __init__(
        self,
        transport: Transport,
        store: Store,
        permission: Permission,
        peers: Peers,
        background: Background,
        events: EventLog,
        origins: Origins,
    ) -> None:
        """`origins` are asked as peers are, under their URLs."""
        self.transport = transport
        self.sessions = Sessions(transport)
        self.bulk = BulkClient()
        self.address_book = AddressBook(peers.delivered)
        self.prefix_indexes = PrefixIndexes(peers.delivered)
        self.pulling: dict[str, asyncio.Task[None]] = {}  # prefix indexes of peers, on their way
        self.swarms = Swarms()
        self.providing = Providing(transport, store, events, self.may_announce)
        self.origins = origins
        self._store = store
        self._permission = permission
        self._background = background
        self._events = events
        peers.leaving.add(self.bulk.forget)
        transport.favour(peers.delivered)

    @property
    def taking_part(self) -> bool:
        """True if this node is meant to be in the network, whether that is up just now or not."""
        return not isinstance(self.transport, Offline)

    @property
    def alive(self) -> bool:
        """True if the network part is running."""
        return self.transport.alive

    def near(self) -> list[str]:
        """Return who can be asked at once: connected peers, and origins."""
        return [*self.transport.connected(), *self.origins.names]

    async def reach(self, address: PeerAddress, seconds: float = LIMITS.dial_seconds, sender: str = "") -> None:
        """Connect to a peer unless it is connected, within `seconds`.

        Raises `Unreachable`, which is held against the addresses and against `sender`, who named them.
        """
        if address.peer in self.origins:
            return  # with its first request
        if address.peer in self.transport.connected():
            self.address_book.met(address.peer)
            return
        try:
            async with asyncio.timeout(seconds):
                await self.transport.connect(address)
        except (Unreachable, TimeoutError) as error:
            if self.address_book.unreached(address, sender):  # and not with each try of a peer that is gone
                self._events.add("unreached", peer=address.peer, reason=str(error)[:200] or "no connection in time")
            raise Unreachable(f"{address.peer} was not reached: {error or 'no connection in time'}") from error
        self.address_book.reached(address, sender)

    async def ask(self, address: PeerAddress, request: messages.Request, kind: type[T], limit: int | None = None) -> T:
        """Send one request to a peer or an origin and return its answer, of `limit` bytes at most.

        Raises `NotFound` or `PeerError`.
        """
        if address.peer in self.origins:
            answered: T = await self.origins.answer(address.peer, request)
            return answered
        return await self.sessions.ask(address, request, kind, limit)

    def queue_announcement(self, artifact: str, document: str | None, *, here: bool = True) -> None:
        """Announce what is new: gossip it now, and publish its provider records when their turn comes.

        `here`: it is in the store; if it is not any more at its turn, it gets no records.
        """
        if self.alive:
            self._background.spawn(self.gossip(artifact, document))
            self.providing.add(artifact, document, here)

    async def announce(self, artifact: str, document: str | None) -> None:
        """Gossip an artifact and publish provider records for it and its document, all at once.  Best effort."""
        await self.gossip(artifact, document)
        try:
            if self.alive:
                await self.providing.give(artifact, document)
        except KvswapError as error:
            self._events.add("announce_failed", artifact=artifact, reason=error.message)

    async def gossip(self, artifact: str, document: str | None) -> None:
        """Announce an artifact to peers over gossip, unless it may not be offered.  Best effort."""
        if not self.alive:
            return
        if not await asyncio.to_thread(self.may_announce, artifact):
            return
        mine = messages.Provider(self.transport.peer, self.transport.addresses()[:8])
        try:
            await self.transport.announce(messages.encode_announce(messages.Announce(artifact, document, mine)))
        except KvswapError as error:
            self._events.add("announce_failed", artifact=artifact, reason=error.message)

    def may_announce(self, artifact: str) -> bool:
        """Return True if an artifact may be announced: one that is not here, or one that is offered.  Blocks."""
        row = self._store.get_artifact(artifact)
        return row is None or self._permission.offered(row)

    def referrals(self, reference: str) -> list[PeerAddress]:
        """Return the addresses of peers that may have what a reference names."""
        return [referral.address for referral in self.address_book.known(reference)]

    async def stop(self) -> None:
        """Leave the network, on both channels."""
        await self.bulk.close()
        await self.origins.close()
        await self.sessions.close()
        await self.transport.stop()
