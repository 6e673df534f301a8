"""The reference transport: peers in one process, with queues for streams.  It is the readable form of the contract."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable

from kvswap.core.bounded import Filling
from kvswap.core.errors import NetworkTimeout, PeerError
from kvswap.net.transport import (
    Announcement,
    AnnouncementHandler,
    PeerAddress,
    Stream,
    StreamClosed,
    StreamHandler,
    Unreachable,
)

_BUFFERED_FRAMES = 16
_CLOSE_SECONDS = 5.0


class MemoryNetwork:
    """The medium that memory transports share: all running nodes and all provider records."""

    def __init__(self) -> None:
        self.nodes: dict[str, MemoryTransport] = {}
        self.providers: dict[bytes, set[str]] = defaultdict(set)


class MemoryStream:
    """One end of a pair of bounded queues, in which None marks the end of a side's frames."""

    def __init__(self, peer: str, incoming: asyncio.Queue[bytes | None], outgoing: asyncio.Queue[bytes | None]) -> None:
        self._peer = peer
        self._in = incoming
        self._out = outgoing
        self._closed = False
        self._dead = False
        self.other: MemoryStream | None = None

    @property
    def peer(self) -> str:
        """The PeerId of the other side."""
        return self._peer

    async def send(self, frame: bytes, seconds: float) -> None:
        """Queue a frame, waiting at most `seconds` for space.  Raises `NetworkTimeout` or `PeerError`."""
        if self._closed or self._dead:
            raise PeerError(f"the stream to {self._peer} is closed")
        try:
            async with asyncio.timeout(seconds):
                await self._out.put(bytes(frame))
        except TimeoutError:
            raise NetworkTimeout(f"{self._peer} did not take a frame within {seconds:g} s") from None

    async def receive(self, limit: int, seconds: float) -> bytes:
        """Take the next frame, of at most `limit` bytes.  Raises `StreamClosed`, `NetworkTimeout` or `PeerError`."""
        if self._dead:
            raise PeerError(f"the stream to {self._peer} was reset")
        try:
            async with asyncio.timeout(seconds):
                frame = await self._in.get()
        except TimeoutError:
            raise NetworkTimeout(f"{self._peer} sent nothing within {seconds:g} s") from None
        if self._dead:
            raise PeerError(f"the stream to {self._peer} was reset")
        if frame is None:
            self._in.put_nowait(None)
            raise StreamClosed(f"{self._peer} ended the stream")
        if len(frame) > limit:
            raise PeerError(f"{self._peer} sent a frame of {len(frame)} bytes where {limit} are allowed")
        return frame

    async def exchange(self, frame: bytes, limit: int, seconds: float) -> bytes:
        """Send a frame, then receive the next one.  Raises what `send` and `receive` raise."""
        await self.send(frame, seconds)
        return await self.receive(limit, seconds)

    async def close(self) -> None:
        """Queue the end mark behind the frames already sent; reset if the other side takes none."""
        if not self._closed:
            self._closed = True
            try:
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._out.put(None)  # behind what is queued
            except TimeoutError:
                await self.reset()

    async def reset(self) -> None:
        """Abort both ends, which drops the queued frames."""
        self._closed = True
        for end in (self, self.other):
            if end is not None:
                end._dead = True
                _push(end._in, None)


def _push(queue: asyncio.Queue[bytes | None], item: bytes | None) -> None:
    if queue.full():
        queue.get_nowait()  # only on reset, where what is queued is lost anyway
    queue.put_nowait(item)


class MemoryTransport:
    """A transport of one node on a `MemoryNetwork`; see `kvswap.net.transport.Transport`."""

    def __init__(self, network: MemoryNetwork, peer: str) -> None:
        self._network = network
        self._peer = peer
        self._links: dict[str, float] = {}  # since when
        self._on_stream: StreamHandler | None = None
        self._on_announcement: AnnouncementHandler | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = ""

    @property
    def peer(self) -> str:
        """The PeerId of this node."""
        return self._peer

    @property
    def alive(self) -> bool:
        """True between `start` and `stop`, unless the transport failed."""
        return self._on_stream is not None

    @property
    def failed(self) -> str:
        """The reason why the transport failed, or empty."""
        return self._failed

    async def _fail(self, why: str) -> None:
        """Stop as a transport that breaks does: with a reason in `failed`."""
        await self.stop()
        self._links.clear()
        self._failed = why

    async def start(self, on_stream: StreamHandler, on_announcement: AnnouncementHandler) -> None:
        """Join the network, and call the handlers for incoming streams and announcements."""
        self._failed = ""
        self._on_stream, self._on_announcement = on_stream, on_announcement
        self._network.nodes[self._peer] = self

    async def stop(self) -> None:
        """Leave the network and cancel the handlers of incoming streams."""
        self._on_stream = None
        self._network.nodes.pop(self._peer, None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def favour(self, favoured: Callable[[str], bool]) -> None:
        """Ignore the predicate: this transport has no limited places."""

    def fillings(self) -> list[Filling]:
        """Return an empty list: this transport has no bounded tables."""
        return []

    def addresses(self) -> list[str]:
        """Return the one address of this node."""
        return [f"/memory/{self._peer}/p2p/{self._peer}"]

    async def connect(self, address: PeerAddress) -> None:
        """Link this node with another one that is running.  Raises `Unreachable`."""
        other = self._network.nodes.get(address.peer)
        if other is None or not other.alive:
            raise Unreachable(f"cannot reach {address.peer}")
        if address.peer not in self._links:
            self._links[address.peer] = other._links[self._peer] = time.time()

    def connected(self) -> list[str]:
        """Return the linked peers that are running, sorted."""
        return [p for p in sorted(self._links) if p in self._network.nodes]

    def connected_since(self, peer: str) -> float | None:
        """Return when a peer was linked (Unix seconds), or None."""
        return self._links.get(peer)

    async def disconnect(self, peer: str) -> None:
        """Remove the link to a peer on both sides."""
        self._links.pop(peer, None)
        if (other := self._network.nodes.get(peer)) is not None:
            other._links.pop(self._peer, None)

    def host_of(self, peer: str) -> str | None:
        """Return the loopback address for a connected peer, else None."""
        return "127.0.0.1" if peer in self.connected() else None

    def relayed(self, peer: str) -> bool:
        """Return False: there are no relays."""
        return False

    def vicinity(self) -> str | None:
        """Return the loopback address, as all peers are on this machine."""
        return "127.0.0.1"

    async def open(self, peer: str) -> Stream:
        """Open a stream to a peer, and run the peer's handler with the other end.  Raises `Unreachable`."""
        await self.connect(PeerAddress(peer))
        other = self._network.nodes[peer]
        there: asyncio.Queue[bytes | None] = asyncio.Queue(_BUFFERED_FRAMES)
        back: asyncio.Queue[bytes | None] = asyncio.Queue(_BUFFERED_FRAMES)
        ours, theirs = MemoryStream(peer, back, there), MemoryStream(self._peer, there, back)
        ours.other, theirs.other = theirs, ours
        assert other._on_stream is not None  # noqa: S101 - connect() checked
        task = asyncio.ensure_future(other._on_stream(theirs))
        other._tasks.add(task)
        task.add_done_callback(other._tasks.discard)
        return ours

    async def provide(self, key: bytes) -> None:
        """Add this node to the provider records of a key."""
        self._network.providers[key].add(self._peer)

    async def find_providers(self, key: bytes) -> list[PeerAddress]:
        """Return the other running nodes that provide a key."""
        return [
            PeerAddress(p, tuple(self._network.nodes[p].addresses()))
            for p in sorted(self._network.providers[key])
            if p in self._network.nodes and p != self._peer
        ]

    async def announce(self, data: bytes) -> None:
        """Call the announcement handler of every other running node."""
        for peer, node in list(self._network.nodes.items()):
            if peer != self._peer and node._on_announcement is not None:
                node._on_announcement(Announcement(self._peer, data, self._peer))
