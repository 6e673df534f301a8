"""Tasks of a transfer: ended in order, their errors seen, their memory theirs until they are done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any


def seen(task: asyncio.Task[None]) -> None:
    """Its error is looked at by the peer's task, unless that one is ending for another one."""
    if not task.cancelled():
        task.exception()


async def stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def whole(function: Callable[..., Any], *arguments: Any) -> None:
    """Run in a thread and await its end even when cancelled: it still uses our memory."""
    work = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        work.exception()  # seen; what counts now is that we were cancelled
        raise
