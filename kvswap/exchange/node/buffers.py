"""Memory for chunks between the socket and the disk: page-aligned, reused, and bounded.

Room is taken before a chunk is requested, so no peer can make the node hold more.
"""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvswap.core.limits import LIMITS
from kvswap.store.direct import aligned

_KEPT = 16
_IDLE_SECONDS = 2.0  # after which memory that no transfer uses is given back


class Buffers:
    """The receive buffers that all transfers of a node share; `budget` is in bytes."""

    def __init__(self, budget: int = LIMITS.receive_bytes) -> None:
        self._budget = budget
        self._used = 0
        self._free: list[mmap.mmap] = []
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # sizes, first come first served
        self._dropping: asyncio.TimerHandle | None = None

    @property
    def used_bytes(self) -> int:
        """The bytes that are leased now, in whole pages."""
        return self._used

    @asynccontextmanager
    async def lease(self, length: int) -> AsyncIterator[mmap.mmap]:
        """Lease memory of at least `length` bytes; waits, first come first served, while the budget is spent."""
        size = -(-max(1, length) // mmap.PAGESIZE) * mmap.PAGESIZE
        await self._take(size)
        memory = next((m for m in reversed(self._free) if size <= len(m) <= 2 * size), None)
        if memory is None:
            memory = aligned(size)
        else:
            self._free.remove(memory)
        try:
            yield memory
        finally:
            if len(self._free) < _KEPT:
                self._free.append(memory)
            self._used -= size
            self._wake()

    async def _take(self, size: int) -> None:
        if not self._waiting and self._fits(size):
            self._used += size
            return
        # Nobody overtakes: what is given back is kept for the first, until it is enough for that one.
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came in the same moment
                self._used -= size
            turn.cancel()
            self._wake()
            raise

    def _fits(self, size: int) -> bool:
        # A chunk larger than the whole budget still gets its turn, alone.
        return not self._used or self._used + size <= self._budget

    def _wake(self) -> None:
        while self._waiting:
            size, turn = self._waiting[0]
            if not turn.done():
                if not self._fits(size):
                    return
                self._used += size
                turn.set_result(None)
            self._waiting.popleft()

    def drop_free_soon(self) -> None:
        """Free unused memory in two seconds unless it is leased again; a transfer's end does not wait for that."""
        if self._dropping is not None:
            self._dropping.cancel()
        self._dropping = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._drop_free)

    def _drop_free(self) -> None:
        self._dropping = None
        if not self._used:
            self._free.clear()
