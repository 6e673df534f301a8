"""The `Transport` over libp2p: the asyncio interface of `host`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from kvswap.core.bounded import Filling
from kvswap.core.errors import KvswapError, P2pDown, PeerError
from kvswap.core.limits import LIMITS
from kvswap.core.settings import Settings
from kvswap.core.upkeep import Problems
from kvswap.net.libp2p.bridge import TrioThread, innermost
from kvswap.net.libp2p.frames import Frames
from kvswap.net.libp2p.host import Callbacks, TrioHost
from kvswap.net.transport import (
    Announcement,
    AnnouncementHandler,
    PeerAddress,
    Stream,
    StreamHandler,
    Unreachable,
)
from kvswap.trust.keys import Key

T = TypeVar("T")
_logger = logging.getLogger("kvswap.net")


class Libp2pStream:
    """A framed libp2p stream, used from asyncio."""

    def __init__(self, bridge: TrioThread, raw: Any, peer: str) -> None:
        self._bridge = bridge
        self._frames = Frames(raw)
        self._peer = peer

    @property
    def peer(self) -> str:
        """The PeerId of the other side, authenticated by Noise."""
        return self._peer

    async def send(self, frame: bytes, seconds: float) -> None:
        """Send a whole frame within `seconds`.  Raises `NetworkTimeout` or `PeerError`."""
        await _call(self._bridge, self._peer, self._frames.send, frame, seconds=seconds)

    async def receive(self, limit: int, seconds: float) -> bytes:
        """Receive the next frame, of at most `limit` bytes.  Raises `StreamClosed`, `NetworkTimeout` or `PeerError`."""
        return await _call(self._bridge, self._peer, self._frames.receive, limit, seconds=seconds)

    async def exchange(self, frame: bytes, limit: int, seconds: float) -> bytes:
        """Send a frame and receive the next one, both within `seconds`.  Raises what `send` and `receive` raise."""
        return await _call(self._bridge, self._peer, self._frames.exchange, frame, limit, seconds=seconds)

    async def close(self) -> None:
        """End this side of the stream, without waiting.  Never raises."""
        await self._end(self._frames.close)

    async def reset(self) -> None:
        """Abort the stream in both directions, without waiting.  Never raises."""
        await self._end(self._frames.reset)

    async def _end(self, function: Callable[[], Awaitable[None]]) -> None:
        with contextlib.suppress(P2pDown):
            self._bridge.post(function)


class Libp2pTransport:
    """A transport over libp2p; see `kvswap.net.transport.Transport`."""

    def __init__(self, seed: bytes, settings: Settings, problems: Problems | None = None) -> None:
        self._seed = seed
        self._settings = settings
        self._problems = problems if problems is not None else Problems()
        self._bridge = TrioThread()
        self._failed = ""  # why it did not start
        self._listened: tuple[str, ...] = ()  # where, the last time
        self._stopped = True
        self._host: TrioHost | None = None
        self._on_stream: StreamHandler | None = None
        self._on_announcement: AnnouncementHandler | None = None
        self._favoured: Callable[[str], bool] = lambda peer: False
        self._tasks: set[asyncio.Task[None]] = set()
        self._peer = str(Key.from_seed(seed).peer_id)

    @property
    def peer(self) -> str:
        """The PeerId of this node."""
        return self._peer

    @property
    def alive(self) -> bool:
        """True while the trio thread runs."""
        return self._bridge.alive

    @property
    def failed(self) -> str:
        """The reason why the transport did not start or ended, or empty; also empty once it was stopped."""
        return "" if self._stopped else self._failed or self._bridge.failure

    async def start(self, on_stream: StreamHandler, on_announcement: AnnouncementHandler) -> None:
        """Listen, and call the handlers for incoming streams and announcements.

        After a failure it listens where it did before, or else as the settings say.  Raises `P2pDown` if it cannot
        listen.
        """
        self._on_stream, self._on_announcement, self._stopped = on_stream, on_announcement, False
        await self._bridge.stop()  # the rest of a run that failed
        # Listen at the same addresses as before, which peers know; if they are taken now, as the settings say.
        failure: P2pDown | None = None
        for listen in dict.fromkeys((self._listened or self._settings.listen, self._settings.listen)):
            try:
                await self._begin(listen)
            except P2pDown as error:
                failure = error
            else:
                failure = None
                break
        self._failed = failure.message if failure is not None else ""
        if failure is not None:
            raise failure
        if self._host is not None:
            self._listened = tuple(str(a) for a in self._host.host.get_transport_addrs())

    async def _begin(self, listen: tuple[str, ...]) -> None:
        bridge = self._bridge = TrioThread()

        def on_gossip(origin: str, via: str, data: bytes) -> None:
            if self._on_announcement is not None:
                self._on_announcement(Announcement(origin, data, via))

        async def main(ready: Callable[[], None]) -> None:
            callbacks = Callbacks(
                lambda raw, peer: bridge.to_loop(self._accept, bridge, raw, peer),
                lambda origin, via, data: bridge.to_loop(on_gossip, origin, via, data),
                lambda peer: self._favoured(peer),
            )
            self._host = TrioHost(self._seed, self._settings, listen, callbacks, self._problems)
            await self._host.run(ready)

        await bridge.start(main, 30.0)

    def _accept(self, bridge: TrioThread, raw: Any, peer: str) -> None:
        if self._on_stream is None:
            return
        task = asyncio.ensure_future(self._guarded(Libp2pStream(bridge, raw, peer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, stream: Libp2pStream) -> None:
        assert self._on_stream is not None  # noqa: S101 - _accept checked
        try:
            await self._on_stream(stream)
        except KvswapError:
            await stream.reset()
        except Exception:
            _logger.exception("answering %s failed", stream.peer)
            await stream.reset()

    async def stop(self) -> None:
        """Close all connections and end the trio thread.  Idempotent."""
        self._on_stream, self._stopped = None, True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bridge.stop()

    def favour(self, favoured: Callable[[str], bool]) -> None:
        """Set the predicate that says which peers keep their places when places are short."""
        self._favoured = favoured

    def fillings(self) -> list[Filling]:
        """Return how full each bounded table of the libp2p host is."""
        return [table.filling() for table in self._host.tables] if self._host else []

    def addresses(self) -> list[str]:
        """Return the multiaddrs at which this node can be dialled; empty if it is not alive."""
        return self._host.addresses() if self._host and self.alive else []

    def connected(self) -> list[str]:
        """Return the PeerIds of all peers with a live connection."""
        return self._host.connected() if self._host and self.alive else []

    def host_of(self, peer: str) -> str | None:
        """Return the IP address of a directly connected peer, else None."""
        return self._host.host_of(peer) if self._host and self.alive else None

    def relayed(self, peer: str) -> bool:
        """Return True if a connected peer is reached through relays only."""
        return self._host.relayed(peer) if self._host and self.alive else False

    def vicinity(self) -> str | None:
        """Return the `sender` for addresses sent by an unknown one of the connected peers; see `dialling.common`."""
        return self._host.vicinity() if self._host and self.alive else None

    def _live(self) -> TrioHost:
        if self._host is None or not self.alive:
            raise P2pDown("the peer-to-peer part of this node is not running", hint="kvswap status")
        return self._host

    def connected_since(self, peer: str) -> float | None:
        """Return when the newest connection to a peer was made (Unix seconds), or None without a connection."""
        return self._host.connected_since(peer) if self._host and self.alive else None

    async def connect(self, address: PeerAddress) -> None:
        """Dial a peer unless it is connected already.

        Raises `Unreachable`, or `P2pDown` if the transport is not alive.
        """
        try:
            await _call(self._bridge, address.peer, self._live().connect, address, seconds=LIMITS.dial_seconds)
        except P2pDown:
            raise
        except PeerError as error:
            raise Unreachable(error.message) from error

    async def disconnect(self, peer: str) -> None:
        """Close the connections to a peer.  Never raises."""
        with contextlib.suppress(PeerError, P2pDown):
            await _call(self._bridge, peer, self._live().disconnect, peer, seconds=LIMITS.request_seconds)

    async def open(self, peer: str) -> Stream:
        """Open a stream to a peer, dialling it if necessary.

        Raises `Unreachable`, `P2pDown` or another `PeerError`.
        """
        if peer not in self.connected():
            await self.connect(PeerAddress(peer))
        raw = await _call(self._bridge, peer, self._live().open, peer, seconds=LIMITS.dial_seconds)
        return Libp2pStream(self._bridge, raw, peer)

    async def provide(self, key: bytes) -> None:
        """Publish a provider record for a 32-byte key in the DHT.

        Raises `P2pDown`, `NetworkTimeout` or `PeerError`.
        """
        # Provider records are paced, so this may wait behind others.
        await _call(self._bridge, "the DHT", self._live().provide, key, seconds=LIMITS.api_seconds * 10)

    async def find_providers(self, key: bytes) -> list[PeerAddress]:
        """Look up the providers of a 32-byte key in the DHT.  Raises `P2pDown`, `NetworkTimeout` or `PeerError`."""
        return await _call(self._bridge, "the DHT", self._live().find_providers, key, seconds=LIMITS.lookup_seconds)

    async def announce(self, data: bytes) -> None:
        """Gossip a message to all subscribed peers.  Raises `P2pDown`, `NetworkTimeout` or `PeerError`."""
        await _call(self._bridge, "gossip", self._live().announce, data, seconds=LIMITS.request_seconds)


async def _call(bridge: TrioThread, peer: str, function: Callable[..., Awaitable[T]], *args: Any, seconds: float) -> T:
    """Call a function through the bridge, converting foreign exceptions into `PeerError`."""
    try:
        return await bridge.call(function, *args, seconds=seconds)
    except KvswapError:
        raise
    except Exception as error:
        inner = innermost(error)
        raise PeerError(f"{peer}: {type(inner).__name__}: {str(inner)[:200]}") from error
