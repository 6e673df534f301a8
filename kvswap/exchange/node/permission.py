"""The permission to serve: which peer may be given what; both channels, announcements and the prefix index ask here.

The answer holds for the moment.  Whoever sends something that takes time asks again before each piece of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection

from kvswap.core.bounded import Table
from kvswap.core.errors import NotFound, PeerBusy
from kvswap.core.ids import Cid
from kvswap.exchange.node.standing import Standings
from kvswap.store import ArtifactRow, Store

_KEPT = 4_096  # chunks whose artifacts are remembered


class Permission:
    """The rules of what one node may give to whom.  May be used from several threads."""

    def __init__(self, store: Store, standings: Standings, unwelcome: Callable[[str], bool]) -> None:
        """`unwelcome(peer)` says whom nothing is given to at all: who is blocked, or flooded lately."""
        self._store = store
        self._standings = standings
        self._unwelcome = unwelcome
        self._lock = threading.Lock()
        self._stamp: tuple[object, ...] = ()
        self.table: Table[Cid, tuple[frozenset[str], float]] = Table("permissions", entries=_KEPT)

    @property
    def stamp(self) -> tuple[object, ...]:
        """A value that changes whenever an answer may have changed by more than the passing of time."""
        return (self._store.generation, *self._standings.stamp)

    def offered(self, row: ArtifactRow) -> bool:
        """Return True if peers may be told of an artifact and be given it."""
        return self._standings.of(row).offered

    def withheld(self) -> tuple[set[str], set[str]]:
        """Return what must not be offered, expiry aside: the artifacts that are here, and the banned publishers."""
        rows = [row for name in self._standings.withheld() if (row := self._store.get_artifact(name)) is not None]
        return {row.id for row in rows if not self.offered(row)}, self._standings.banned_publishers()

    def refuse_peer(self, peer: str) -> None:
        """Raise `PeerBusy` for a peer that is given nothing: one that is blocked or throttled."""
        if self._unwelcome(peer):
            raise PeerBusy("this node does not serve you")

    def refuse_chunk(self, peer: str, cid: Cid, artifacts: Collection[str] | None = None) -> None:
        """Raise `PeerBusy` for a peer that is given nothing, `NotFound` for a chunk that it must not have.

        A chunk may be given that belongs to an artifact that is offered: to one of `artifacts`, where the peer's
        bulk ticket names these.
        """
        self.refuse_peer(peer)
        offered = self._offered_with(cid)
        if not (offered if artifacts is None else offered.intersection(artifacts)):
            raise NotFound(f"chunk {cid} is not here")

    def _offered_with(self, cid: Cid) -> frozenset[str]:
        """Return the offered artifacts that a chunk belongs to."""
        stamp = self.stamp
        with self._lock:
            if stamp != self._stamp:
                self.table.clear()
                self._stamp = stamp
            known = self.table.get(cid)
        if known is not None and time.time() < known[1]:
            return known[0]
        rows = [row for row in self._store.artifacts_with(cid) if self.offered(row)]
        found = frozenset(row.id for row in rows), min((float(row.expires) for row in rows), default=0.0)
        with self._lock:
            if rows and stamp == self._stamp:  # nothing changed while it was looked up
                self.table.put(cid, found)
        return found[0]
