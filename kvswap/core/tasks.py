"""Tasks: waiting for the end of what must end, whoever cancels; and reaching the event loop from other threads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any


class OnLoop:
    """A way to call functions on an event loop: at once when called on it, soon when called from another thread."""

    def __init__(self) -> None:
        """Take the running loop, or the first one on which something is called."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running()

    def call(self, work: Callable[..., object], *arguments: Any) -> None:
        """Call `work` with the arguments on the loop.

        The call happens at once where there never was a loop, and never where the loop has ended.
        """
        if self._running() or self._loop is None:
            work(*arguments)
            return
        with contextlib.suppress(RuntimeError):  # it was closed: nobody is left to mind
            self._loop.call_soon_threadsafe(work, *arguments)

    def _running(self) -> bool:
        """Return True if this is called on a loop, and remember which."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        return True


async def until_done(
    futures: Iterable[asyncio.Future[Any]],
    again: Callable[[], object] | None = None,
    every: float | None = None,
) -> None:
    """Wait until all futures are done, however often the caller is cancelled meanwhile.

    Neither cancels them nor looks at their outcome.  A cancellation is raised once all are done.  `again` is called
    every `every` seconds and after each cancellation, for what has to be told to stop more than once.
    """
    pending = {future for future in futures if not future.done()}
    cancelled: asyncio.CancelledError | None = None
    while pending:
        try:
            _, pending = await asyncio.wait(pending, timeout=every)
        except asyncio.CancelledError as error:
            cancelled = error
            pending = {future for future in pending if not future.done()}
        if pending and again is not None:
            again()
    if cancelled is not None:
        raise cancelled


async def end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel each task once and wait until all are done, however often the caller is cancelled meanwhile.

    Their errors count as seen: a caller that ends tasks wants nothing of them any more.
    """
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    try:
        await until_done(tasks)
    finally:
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()
