"""The transport contract: authenticated peers, framed streams, provider records, announcements.

Every implementation passes `tests/net/test_transport_conformance.py`.

Contract:
* `Stream.peer` is authenticated: the other side holds that key.
* A frame arrives whole or the call raises; truncation is never an empty or short frame.
* Every call returns or raises within its stated time-out; cancelling a call leaves the transport
  usable, and the stream must then be reset.
* `receive(limit)` raises `PeerError` for a longer frame *before* buffering it.
* `on_stream` and `on_announcement` are called on the asyncio loop that called `start`.
* Provider records and announcements are hints: they may be lost, late or false.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from kvswap.core.bounded import Filling
from kvswap.core.errors import PeerError
from kvswap.net.dialling import BY_HAND


class StreamClosed(PeerError):
    """The error for a stream that the other side ended between two frames."""

    code = "stream_closed"


class Unreachable(PeerError):
    """The error for a peer that could not be connected to, which proves no fault of the peer's."""

    code = "unreachable"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A peer and the unverified multiaddrs, with or without the /p2p/ part, at which it may be reached.

    `sender` is the source of the addresses, as `net.dialling` defines it: `BY_HAND` for what the user typed, otherwise
    the IP address of the peer that sent them, or None if that is unknown.
    """

    peer: str
    addresses: tuple[str, ...] = ()
    sender: str | None = BY_HAND


@dataclass(frozen=True, slots=True)
class Announcement:
    """A gossip message, with the peer that signed it and the connected peer that forwarded it (empty if unknown)."""

    origin: str
    data: bytes
    via: str = ""


class Stream(Protocol):
    """A bidirectional stream of frames to one authenticated peer."""

    @property
    def peer(self) -> str:
        """The PeerId of the other side, which is authenticated."""

    async def send(self, frame: bytes, seconds: float) -> None:
        """Send a whole frame within `seconds`.  Raises `NetworkTimeout` or `PeerError`."""

    async def receive(self, limit: int, seconds: float) -> bytes:
        """Receive the next frame, of at most `limit` bytes.  Raises `StreamClosed`, `NetworkTimeout` or `PeerError`."""

    async def exchange(self, frame: bytes, limit: int, seconds: float) -> bytes:
        """Send a frame and receive the next one, both within `seconds`.  Raises what `send` and `receive` raise."""

    async def close(self) -> None:
        """End this side of the stream; frames already sent still arrive.  Never raises."""

    async def reset(self) -> None:
        """Abort the stream in both directions and drop what is still queued.  Never raises."""


StreamHandler = Callable[[Stream], Awaitable[None]]
AnnouncementHandler = Callable[[Announcement], None]


class Transport(Protocol):
    """A node's connection to the network of its peers."""

    @property
    def peer(self) -> str:
        """The PeerId of this node."""

    @property
    def alive(self) -> bool:
        """True while the transport runs; False once it failed or was stopped, and the node goes on without peers."""

    @property
    def failed(self) -> str:
        """The reason why the transport ended although nobody stopped it, or empty; `start` may then be called again."""

    async def start(self, on_stream: StreamHandler, on_announcement: AnnouncementHandler) -> None:
        """Listen, and call the handlers for incoming streams and announcements.

        Raises `P2pDown` if it cannot listen.
        """

    async def stop(self) -> None:
        """Close all connections and listeners.  Idempotent; never raises."""

    def favour(self, favoured: Callable[[str], bool]) -> None:
        """Set the predicate that says which peers keep their places when places are short.

        Call it before `start`.  The transport calls `favoured` from any thread.
        """

    def fillings(self) -> list[Filling]:
        """Return how full each of the transport's own bounded tables is."""

    def addresses(self) -> list[str]:
        """Return the multiaddrs at which this node can be dialled; each ends in /p2p/<peer>."""

    async def connect(self, address: PeerAddress) -> None:
        """Dial a peer unless it is connected already.  Raises `Unreachable`."""

    def connected(self) -> list[str]:
        """Return the PeerIds of all peers with a live connection."""

    def connected_since(self, peer: str) -> float | None:
        """Return when the newest connection to a peer was made (Unix seconds), or None without a connection."""

    async def disconnect(self, peer: str) -> None:
        """Close the connection to a peer, and its streams with it.  Best effort; never raises."""

    def host_of(self, peer: str) -> str | None:
        """Return the IP address of a connected peer, or None if it is reached through a relay or not connected."""

    def relayed(self, peer: str) -> bool:
        """Return True if a connected peer is reached through a relay only."""

    def vicinity(self) -> str | None:
        """Return the `sender` for addresses sent by an unknown one of the connected peers; see `dialling.common`."""

    async def open(self, peer: str) -> Stream:
        """Open a new stream to a connected or dialable peer.  Raises `Unreachable` or another `PeerError`."""

    async def provide(self, key: bytes) -> None:
        """Publish a provider record: this node has this 32-byte key.  Best effort."""

    async def find_providers(self, key: bytes) -> list[PeerAddress]:
        """Look up the peers that published a provider record for this key.  Best effort; the list may be empty."""

    async def announce(self, data: bytes) -> None:
        """Gossip at most 64 KiB to all subscribed peers.  Best effort."""
