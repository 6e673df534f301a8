"""Chunks on their way to peers: checked before they are sent, within limits, counted as they go.

Over HTTPS a chunk goes out in pieces from its file, in a thread; over libp2p it is one frame, whole in
memory, and room is taken for it before it is read.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from kvswap.core.errors import PeerBusy
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.counters import Counters
from kvswap.exchange.node.permission import Permission
from kvswap.exchange.serving.fair import Pacer, UploadQuota
from kvswap.store import ChunkFile, Ledger, Store


class Uploads:
    """The chunks on their way to peers: implements `net.bulk.Chunks`, and libp2p answers go through it as well."""

    def __init__(self, store: Store, permission: Permission, ledger: Ledger, counters: Counters, rate: int) -> None:
        self._store = store
        self._permission = permission
        self._ledger = ledger
        self._counters = counters
        self._quota = UploadQuota(LIMITS.upload_bytes, LIMITS.upload_bytes_per_peer, LIMITS.uploads_waiting_per_peer)
        self._pacer = Pacer(rate)
        self._lock = threading.Lock()
        self._open: Counter[str] = Counter()
        self.paced = rate > 0

    def permit(self, peer: str, cid: Cid, artifacts: Collection[str] | None = None) -> None:
        """Raise `PeerBusy` or `NotFound` unless this peer may be given this chunk now.

        `artifacts`: those that the peer's bulk ticket names; the chunk must belong to one of them.
        """
        self._permission.refuse_chunk(peer, cid, artifacts)

    # -- in pieces, from any thread ----------------------------------------------------------------

    @contextmanager
    def open(self, peer: str, cid: Cid) -> Iterator[ChunkFile]:
        """Open a chunk for a peer, as a context manager.  Raises `NotFound`, `IntegrityError`, `PeerBusy`."""
        self.permit(peer, cid)
        with self._lock:
            if self._open[peer] >= LIMITS.uploads_per_peer:
                raise PeerBusy(f"{LIMITS.uploads_per_peer} chunks are on their way to you")
            self._open[peer] += 1
        try:
            with self._store.open_chunk(cid) as chunk:
                yield chunk
        finally:
            with self._lock:
                self._open[peer] -= 1
                self._open += Counter()

    def count(self, peer: str, size: int) -> None:
        """Add bytes that go out now to this peer's account and to the node's counters."""
        with self._lock:
            with self._ledger.changing(peer) as record:
                record.bytes_out += size
            self._counters.bytes_out += size

    async def turn(self, peer: str, size: int) -> None:
        """Wait for this peer's turn at the node's upload rate."""
        await self._pacer.take(peer, size)

    # -- whole -------------------------------------------------------------------------------------

    async def take(self, peer: str, cid: Cid) -> tuple[bytes, int]:
        """Return the bytes of a chunk and the room they take, until `give_back`.  Raises as `open` does."""
        size = await asyncio.to_thread(self._permitted_length, peer, cid)
        await self._quota.acquire(peer, size)
        try:
            data = await asyncio.to_thread(self._store.get_chunk, cid)
            await self.turn(peer, len(data))
            await asyncio.to_thread(self.permit, peer, cid)  # it may have waited for long
        except BaseException:
            self._quota.release(peer, size)
            raise
        self.count(peer, len(data))
        return data, size

    def _permitted_length(self, peer: str, cid: Cid) -> int:
        self.permit(peer, cid)
        return self._store.chunk_length(cid)

    async def share(self, peer: str, size: int, read: Callable[[], bytes]) -> bytes:
        """Read something else that is large, of `size` bytes, when there is room for it and it is this peer's turn.

        Its room is taken until `give_back`.  Raises `PeerBusy`, and what `read`, which runs in a thread, does.
        """
        await self._quota.acquire(peer, size)
        try:
            data: bytes = await asyncio.to_thread(read)
            await self.turn(peer, len(data))
        except BaseException:
            self._quota.release(peer, size)
            raise
        self.count(peer, len(data))
        return data

    def give_back(self, peer: str, size: int) -> None:
        """Give back the room of bytes that `take` or `share` returned, once they are sent."""
        self._quota.release(peer, size)
