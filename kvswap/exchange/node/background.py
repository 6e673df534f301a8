"""The background tasks of a node: their errors are seen, and what only one may do at a time is locked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakValueDictionary

from kvswap.core.tasks import OnLoop
from kvswap.core.upkeep import Problems
from kvswap.exchange.node.events import EventLog


class Background:
    """The tasks of a node that no request waits for."""

    def __init__(self, problems: Problems, events: EventLog) -> None:
        self.problems = problems  # what is degraded, by part
        self._events = events
        self.tasks: set[asyncio.Task[None]] = set()
        self._on_loop = OnLoop()
        self.measuring = False  # prefill of the model
        self.transcoding = asyncio.Lock()  # one document at a time, and each once
        self.downloading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # artifacts being fetched

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task beside the requests, until it ends or the node stops.  Call it on the event loop."""
        task = asyncio.create_task(work)
        self.tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._ended)
        return task

    def spawn_from(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run the coroutine that `work` makes beside the requests; may be called from any thread."""
        self._on_loop.call(lambda: self.spawn(work()))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if task.cancelled():
            return
        name = getattr(task.get_coro(), "__name__", "task")
        if (error := task.exception()) is None:
            self.problems.clear_one(name)
        else:
            self.problems.note(name, error)  # never silently: `kvswap status` shows it
            self._events.add("task_failed", task=name, reason=self.problems[name])

    def report_problem(self, name: str, why: str | None) -> None:
        """Add an event that a part does not work any more, or (`why` is None) that it works again."""
        kind = {"p2p": "p2p", "bulk": "bulk"}.get(name, "upkeep")
        about = {"part": name} if kind == "upkeep" else {}
        if why is None:
            self._events.add(f"{kind}_up", **about)
        else:
            self._events.add(f"{kind}_down", reason=why, **about)

    async def stop(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
