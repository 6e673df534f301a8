"""Memory for chunks between the socket and the disk: page-aligned, reused, and bounded.

Room is taken before a chunk is asked for, so no peer can make the node hold more.
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
    """Shared by all transfers of a node."""

    def __init__(self, budget: int = LIMITS.receive_bytes) -> None:
        self._budget = budget
        self._used = 0
        self._free: list[mmap.mmap] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._dropping: asyncio.TimerHandle | None = None

    @property
    def used_bytes(self) -> int:
        return self._used

    @asynccontextmanager
    async def lease(self, length: int) -> AsyncIterator[mmap.mmap]:
        """Memory of at least `length` bytes; waits, first come first served, while the budget is spent."""
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
        # A chunk larger than the whole budget still gets its turn, alone.
        while self._used and self._used + size > self._budget:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            finally:
                if turn in self._waiting:
                    self._waiting.remove(turn)
        self._used += size

    def _wake(self) -> None:
        for turn in self._waiting:
            if not turn.done():
                turn.set_result(None)

    def drop_free_soon(self) -> None:
        """Give unused memory back unless somebody asks for it again; the end of a transfer does not wait for that."""
        if self._dropping is not None:
            self._dropping.cancel()
        self._dropping = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._drop_free)

    def _drop_free(self) -> None:
        self._dropping = None
        if not self._used:
            self._free.clear()
