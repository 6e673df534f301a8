"""The event log: a bounded list of what happened, for people and scripts, that can be followed.

A follower that is too slow loses the oldest events, never the node's time.  Each event is in `kvswap.log` as well, in
the name of the module where it happened, with the fields of `LOGGED` alone: what the local API may tell its user,
such as a sealed document's digest or a group's name, is not for a file that is sent to others when something is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

from kvswap.api.events import NodeEvent
from kvswap.core.bounded import Table
from kvswap.core.limits import LIMITS, MIB
from kvswap.core.tasks import OnLoop

LOGGED = frozenset(
    {
        *("artifact", "audit", "auditor", "bytes", "by", "chunks", "codec", "codecs", "how", "new", "old", "part"),
        *("peer", "peers", "problem", "publisher", "reason", "seconds", "task", "teller"),
    }
)
"""The fields of events that are logged."""
_WARNINGS = frozenset({"damaged_here", "found_wrong", "publisher_caught"})
_DOCUMENT = re.compile(r"sha256:[0-9a-f]{6,}")
_REASON = 300  # characters


def _brief(value: object) -> object:
    """Return a value as it is logged: what stands for a document is left out of sentences, and they are cut."""
    return _DOCUMENT.sub("sha256:…", value)[:_REASON] if isinstance(value, str) else value


def _log(kind: str, values: dict[str, Any]) -> None:
    module = str(sys._getframe(2).f_globals.get("__name__"))
    logger = logging.getLogger(module if module.startswith("kvswap.") else __name__)
    level = logging.WARNING if kind in _WARNINGS else logging.INFO
    if logger.isEnabledFor(level):
        logged = {name: _brief(value) for name, value in values.items() if name in LOGGED}
        words = " ".join(f"{name}={value}" for name, value in logged.items())
        logger.log(level, "%s %s", kind, words, extra={"event": {"event": kind, **logged}})


class EventLog:
    """The last `LIMITS.events_kept` events, numbered.  No kind of event pushes out those of the other kinds."""

    def __init__(self) -> None:
        self.table: Table[int, NodeEvent] = Table(
            "events", entries=LIMITS.events_kept, nbytes=4 * MIB, per_sender=LIMITS.events_kept // 4
        )
        self._followers: set[asyncio.Queue[NodeEvent]] = set()
        self._next = 1
        self._on_loop = OnLoop()

    def add(self, kind: str, **values: Any) -> None:
        """Record an event.  May be called from any thread; off the event loop it appears with a short delay."""
        _log(kind, values)
        self._on_loop.call(self._add, kind, round(time.time(), 3), values)

    def _add(self, kind: str, at: float, values: dict[str, Any]) -> None:
        event = NodeEvent(id=self._next, time=at, kind=kind, more=values)
        self._next += 1
        self.table.put(event.id, event, kind)
        for queue in self._followers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)

    def recent(self, count: int = 100) -> list[NodeEvent]:
        """Return the last `count` events, the oldest first."""
        return self.table.values()[-count:]

    async def follow(self) -> AsyncIterator[NodeEvent]:
        """Iterate over the events from now on, without end."""
        queue: asyncio.Queue[NodeEvent] = asyncio.Queue(LIMITS.events_kept)
        self._followers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._followers.discard(queue)
