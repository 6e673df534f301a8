"""Write-behind: what was fetched is listed when it is written, and made durable a little later.

Waiting for the disk before each chunk is listed costs a fetch 5 to 30 ms at its end and, where a sync is slow, most
of its rate.  What a loss of power takes before it was synced can be had again; it only has to be noticed, so the index
says of each chunk whether it was synced, and those that were not are checked when the store is opened next
(`docs/adr/0020-behind.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvswap.core.ids import Cid
from kvswap.core.upkeep import Problems, Writer

_WAITING_BYTES = 256 << 20  # more than this is not left to the power: who writes waits
_BATCH = 64
_NAME = "syncing"


class WriteBehind:
    """A thread that syncs files, the oldest first.  It starts when it is needed, and survives errors of the disk."""

    def __init__(
        self,
        sync: Callable[[Cid], None],
        synced: Callable[[Sequence[Cid]], None],
        problems: Problems | None = None,
    ) -> None:
        """`sync` makes one durable; `synced` is told of those that are.  Both are called from the thread.

        What fails stays marked as not synced, and is looked at when the store is opened next.
        """
        self._sync, self._synced = sync, synced
        self._writer = Writer(_NAME, self._work, budget=_WAITING_BYTES, batch=_BATCH, problems=problems)

    def add(self, cid: Cid, size: int) -> None:
        """Queue a chunk of `size` bytes to be synced; waits while too many bytes are queued already."""
        self._writer.add(cid, size)

    def _work(self, cids: Sequence[Cid]) -> None:
        done, failure = [], None
        for cid in cids:
            try:
                self._sync(cid)
                done.append(cid)
            except Exception as error:  # noqa: BLE001 - the others are synced all the same
                failure = error
        if done:
            self._synced(done)
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Sync what is queued, and end."""
        self._writer.close()
