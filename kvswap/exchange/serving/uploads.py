"""Chunks on their way to peers: reserved before they are read, checked before they are sent, counted as they go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.counters import Counters
from kvswap.exchange.serving.fair import Pacer, Room
from kvswap.store import Ledger, Store


class Uploads:
    """Implements `net.bulk.Chunks`; libp2p answers go through it as well."""

    def __init__(self, store: Store, ledger: Ledger, counters: Counters, rate: int) -> None:
        self._store = store
        self._ledger = ledger
        self._counters = counters
        self._room = Room(LIMITS.upload_bytes, LIMITS.upload_bytes_per_peer, LIMITS.uploads_waiting_per_peer)
        self._pacer = Pacer(rate)

    @property
    def held_bytes(self) -> int:
        """Memory of chunks on their way out."""
        return self._room.used

    @asynccontextmanager
    async def chunk(self, peer: str, cid: Cid) -> AsyncIterator[bytes]:
        """The checked bytes.  Raises `NotFound`, `IntegrityError`, `PeerBusy`."""
        data, size = await self.take(peer, cid)
        try:
            yield data
        finally:
            self.give_back(peer, size)

    async def take(self, peer: str, cid: Cid) -> tuple[bytes, int]:
        """The bytes and the room they take, until `give_back`."""
        size = self._store.chunk_length(cid)  # one look-up in memory-mapped pages: not worth a thread
        await self._room.acquire(peer, size)
        try:
            with self._store.lease([cid]):
                return await asyncio.to_thread(self._store.get_chunk, cid), size
        except BaseException:
            self._room.release(peer, size)
            raise

    def give_back(self, peer: str, size: int) -> None:
        self._room.release(peer, size)

    async def pace(self, peer: str, size: int) -> None:
        """Wait for this peer's turn at the node's upload rate, and count the bytes."""
        await self._pacer.take(peer, size)
        self._ledger.record(peer).bytes_out += size
        self._counters.bytes_out += size
