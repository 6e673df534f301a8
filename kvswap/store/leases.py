"""The leases of chunks: those in use are not collected, and those being collected are waited for.

The lock is held for no disk: whoever wants a lease waits for nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager

from kvswap.core.ids import Cid
from kvswap.core.tasks import until_done


class Leases:
    """The leases of chunks: how often each is held."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[Cid, int] = {}
        self._going: set[Cid] = set()

    def __len__(self) -> int:
        return len(self._held)

    @contextmanager
    def lease(self, cids: Iterable[Cid] = ()) -> Iterator[Callable[[Cid], None]]:
        """Hold these chunks, and those passed to the yielded function, so that they are not collected meanwhile."""
        held: list[Cid] = []

        def hold(cid: Cid) -> None:
            with self._changed:
                held.append(cid)
                self._held[cid] = self._held.get(cid, 0) + 1

        try:
            for cid in cids:
                hold(cid)
            yield hold
        finally:
            for cid in held:
                with self._changed:
                    left = self._held[cid] - 1
                    if left:
                        self._held[cid] = left
                    else:
                        del self._held[cid]

    @asynccontextmanager
    async def held(self, named: Callable[[], Iterable[Cid]]) -> AsyncIterator[None]:
        """Hold the chunks that `named` returns, as `lease` does, without keeping an event loop.

        Of an artifact of 100,000 chunks naming, holding and letting go of them takes half a second.
        """
        lease = ExitStack()
        taking = asyncio.ensure_future(asyncio.to_thread(lambda: lease.enter_context(self.lease(named()))))
        try:
            await until_done([taking])
            taking.result()
            yield
        finally:
            await until_done([asyncio.ensure_future(asyncio.to_thread(lease.close))])

    @contextmanager
    def free(self, cids: Collection[Cid], *, together: bool = False) -> Iterator[list[Cid]]:
        """Yield the chunks that nobody holds, to be deleted meanwhile; `together`: all of them or none.

        Who takes a lease from now on comes after the deletion, and `wait_deleted` waits for its end.
        """
        with self._changed:
            free = [cid for cid in cids if cid not in self._held and cid not in self._going]
            if together and len(free) < len(cids):
                free = []
            self._going.update(free)
        try:
            yield free
        finally:
            with self._changed:
                self._going.difference_update(free)
                self._changed.notify_all()

    def wait_deleted(self, cid: Cid) -> None:
        """Wait while a chunk is being deleted.  Blocks: call it in a thread only."""
        if cid in self._going:
            with self._changed:
                self._changed.wait_for(lambda: cid not in self._going)
