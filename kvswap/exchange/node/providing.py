"""Provider records of new artifacts, published one after the other.

Peers accept ten records in ten seconds from a node, so publishing them is paced, and what was fetched or published may
come faster than that.  It waits in a bounded table, each artifact once, and nothing else is held for it meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kvswap.core.bounded import Table
from kvswap.core.errors import KvswapError, P2pDown
from kvswap.core.ids import Cid, document_key
from kvswap.exchange.node.events import EventLog
from kvswap.net import Transport
from kvswap.store import Store

_WAITING = 4_096  # artifacts; the upkeep tells of all that is here from time to time, so of what gave way too


class Providing:
    """The queue of artifacts whose provider records are still to be published."""

    def __init__(
        self, transport: Transport, store: Store, events: EventLog, may_announce: Callable[[str], bool]
    ) -> None:
        """`may_announce(artifact)`: whether peers may hear of it; it blocks."""
        self._transport = transport
        self._store = store
        self._events = events
        self._may_announce = may_announce
        # The document of each artifact, and whether the artifact was here: then it must still be at its turn.
        self.table: Table[str, tuple[str | None, bool]] = Table(
            "records to give", entries=_WAITING, size=lambda artifact, what: 256
        )

    def add(self, artifact: str, document: str | None, here: bool) -> None:
        """Queue an artifact; one that waits already keeps its place.  What is `here` now must be at its turn too."""
        if artifact not in self.table:
            self.table.put(artifact, (document, here))

    def _is_here(self, artifact: str) -> bool:
        return self._store.get_artifact(artifact) is not None

    async def step(self) -> None:
        """Publish the records of all that waits, the first one first.  Best effort."""
        while self._transport.alive and (artifact := next(iter(self.table), None)) is not None:
            document, was_here = self.table.peek(artifact) or (None, False)
            try:
                if not was_here or await asyncio.to_thread(self._is_here, artifact):
                    await self.give(artifact, document)
            except P2pDown:
                return  # it is started again, and this waits
            except KvswapError as error:
                self._events.add("announce_failed", artifact=artifact, reason=error.message)
            self.table.pop(artifact)

    async def give(self, artifact: str, document: str | None) -> None:
        """Publish the records of an artifact and its document, unless it may not be offered.  Raises `PeerError`."""
        if not await asyncio.to_thread(self._may_announce, artifact):
            return
        await self._transport.provide(Cid.parse(artifact).digest)
        if document is not None:
            await self._transport.provide(document_key(document))
