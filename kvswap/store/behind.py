"""Syncing behind: what was fetched is listed when it is written, and made durable a little later.

Waiting for the disk before each chunk is listed costs a fetch 5 to 30 ms at its end and, where a sync is slow, most
of its rate.  What the power takes before it was synced can be had again; it only has to be noticed, so the index
says of each chunk whether it was synced, and those that were not are looked at when the store is opened next
(`docs/adr/0020-behind.md`).
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence

from kvswap.core.ids import Cid

_WAITING_BYTES = 256 << 20  # more than this is not left to the power: who writes waits
_BATCH = 64


class Behind:
    """One thread that syncs, oldest first.  Starts when it is needed."""

    def __init__(self, sync: Callable[[Cid], None], synced: Callable[[Sequence[Cid]], None]) -> None:
        """`sync` makes one durable; `synced` is told of those that are.  Both are called from the thread."""
        self._sync, self._synced = sync, synced
        self._waiting: deque[tuple[Cid, int]] = deque()
        self._bytes = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def add(self, cid: Cid, size: int) -> None:
        """To be synced; waits while too much is already."""
        with self._changed:
            self._changed.wait_for(lambda: self._bytes < _WAITING_BYTES)
            self._waiting.append((cid, size))
            self._bytes += size
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="kvswap-sync", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            for cid, _ in batch:
                self._sync(cid)
            with contextlib.suppress(Exception):  # they stay marked, and nobody who writes waits for ever
                self._synced([cid for cid, _ in batch])
            with self._changed:
                self._bytes -= sum(size for _, size in batch)
                self._changed.notify_all()

    def close(self) -> None:
        """Sync what is waiting, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
