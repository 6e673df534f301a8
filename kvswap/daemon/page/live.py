"""Keeps open pages current: parts are made again once a second, and sent where they changed.

All pages share what is made, so that three cost as much as one, and events that come faster than pages are made cost
nothing.  While no page is open nothing is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from kvswap.core.upkeep import Problems, forever

Parts = Mapping[str, Callable[[], Awaitable[str]]]

_EVERY_SECONDS = 1.0
MOST_PAGES = 32


class LiveParts:
    """The current HTML of each part, while somebody looks."""

    def __init__(self, parts: Parts, problems: Problems) -> None:
        self._parts, self._problems = parts, problems
        self._html: dict[str, tuple[int, str]] = {}  # by part: its version
        self._version = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._pages = 0

    @property
    def pages(self) -> int:
        """The number of pages that follow."""
        return self._pages

    async def follow(self) -> AsyncIterator[dict[str, str]]:
        """Iterate over what changed, as HTML by part, without end.  Every second something comes, if only nothing."""
        self._pages += 1
        if self._task is None:
            self._task = asyncio.create_task(forever("page", self._make, self._problems, pause=_EVERY_SECONDS))
        seen = 0
        try:
            while True:
                version, changed = self._version, self._changed  # of what is sent now: more may change meanwhile
                yield {name: html for name, (made, html) in self._html.items() if made > seen}
                seen = version
                try:
                    async with asyncio.timeout(_EVERY_SECONDS * 10):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            self._pages -= 1
            if not self._pages:
                self._task.cancel()
                self._task = None
                self._html.clear()

    async def _make(self) -> None:
        """Make every part once, and wake the pages when one is not as it was."""
        made = {name: await make() for name, make in self._parts.items()}
        new = {name: html for name, html in made.items() if self._html.get(name, (0, ""))[1] != html}
        if new:
            self._version += 1
            self._html |= {name: (self._version, html) for name, html in new.items()}
            self._changed.set()
            self._changed = asyncio.Event()
