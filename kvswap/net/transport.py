"""The transport contract: authenticated peers, framed streams, provider records, announcements.

Every implementation passes `tests/net/test_transport_conformance.py`.

Contract:
* `Stream.peer` is authenticated: the other side holds that key.
* A frame arrives whole or the call raises; truncation is never an empty or short frame.
* Every call returns or raises within its stated time-out; cancelling a call leaves the transport
  usable, and the stream must then be reset.
* `receive(limit)` raises `PeerError` for a longer frame *before* buffering it.
* `on_stream` and `on_announcement` are called on the asyncio loop that called `start`.
* Provider records and announcements are hints: they may be lost, late, or lies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from kvswap.core.bounded import Filling
from kvswap.core.errors import PeerError
from kvswap.net.dialling import BY_HAND


class StreamClosed(PeerError):
    """The other side ended the stream between frames."""

    code = "stream_closed"


class Unreachable(PeerError):
    """No connection to a peer came about: nothing that the peer itself did or said."""

    code = "unreachable"


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A peer and where it may be: multiaddrs with or without the /p2p/ part.  Unverified.

    `teller`: on whose word, as `net.dialling` has it; whatever was not typed by the user names one.
    """

    peer: str
    addresses: tuple[str, ...] = ()
    teller: str | None = BY_HAND


@dataclass(frozen=True, slots=True)
class Announcement:
    """A gossip message, the peer that signed it, and the connected one that passed it on (empty: unknown)."""

    origin: str
    data: bytes
    via: str = ""


class Stream(Protocol):
    """One bidirectional stream of frames."""

    @property
    def peer(self) -> str: ...

    async def send(self, frame: bytes, seconds: float) -> None:
        """Send a whole frame.  Raises `NetworkTimeout` or `PeerError`."""

    async def receive(self, limit: int, seconds: float) -> bytes:
        """The next frame of at most `limit` bytes.  Raises `StreamClosed`, `NetworkTimeout`, `PeerError`."""

    async def exchange(self, frame: bytes, limit: int, seconds: float) -> bytes:
        """`send`, then `receive`, together in `seconds`.  Raises what they do."""

    async def close(self) -> None:
        """End our side; never raises."""

    async def reset(self) -> None:
        """Abandon the stream; never raises."""


StreamHandler = Callable[[Stream], Awaitable[None]]
AnnouncementHandler = Callable[[Announcement], None]


class Transport(Protocol):
    """A node's place in the network."""

    @property
    def peer(self) -> str: ...

    @property
    def alive(self) -> bool:
        """False once the transport failed; the node goes on without peers."""

    @property
    def failed(self) -> str:
        """Why it is not alive although nobody stopped it, or empty: then `start` may be called again."""

    async def start(self, on_stream: StreamHandler, on_announcement: AnnouncementHandler) -> None:
        """Listen.  Raises `P2pDown` when that is not possible."""

    async def stop(self) -> None:
        """Close everything; idempotent, never raises."""

    def favour(self, favoured: Callable[[str], bool]) -> None:
        """Say which peers keep their places when these are short.  Called from any thread; before `start`."""

    def fillings(self) -> list[Filling]:
        """How full the transport's own tables are."""

    def addresses(self) -> list[str]:
        """Where this node can be dialled: multiaddrs that end in /p2p/<peer>."""

    async def connect(self, address: PeerAddress) -> None:
        """Make sure there is a connection.  Raises `Unreachable`."""

    def connected(self) -> list[str]:
        """Peers with a live connection."""

    def connected_since(self, peer: str) -> float | None:
        """When the newest connection to a peer was made (Unix seconds); None without one."""

    async def disconnect(self, peer: str) -> None:
        """Close the connection to a peer, and its streams with it.  Best effort; never raises."""

    def host_of(self, peer: str) -> str | None:
        """The IP address that a connected peer is seen at; None when it is relayed or not connected."""

    def relayed(self, peer: str) -> bool:
        """Whether a connected peer is reached through a relay only."""

    def vicinity(self) -> str | None:
        """The teller of what somebody unknown among the connected told: see `dialling.common`."""

    async def open(self, peer: str) -> Stream:
        """A new stream to a connected or dialable peer.  Raises `Unreachable`, or another `PeerError`."""

    async def provide(self, key: bytes) -> None:
        """Tell the network that we have this 32-byte key.  Best effort."""

    async def find_providers(self, key: bytes) -> list[PeerAddress]:
        """Who says to have it.  Best effort; may be empty."""

    async def announce(self, data: bytes) -> None:
        """Gossip at most 64 KiB to whoever listens.  Best effort."""
