"""The tasks of a transfer: ended in order, their errors seen, their memory theirs until they are done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from kvswap.core.tasks import until_done


def retrieve_error(task: asyncio.Task[None]) -> None:
    """Mark the error of a task as seen, which the peer's task looks at unless it is ending for another one."""
    if not task.cancelled():
        task.exception()


async def run_to_end(function: Callable[..., Any], *arguments: Any) -> None:
    """Run a function in a thread and await its end however often this is cancelled: it still uses our memory."""
    work = asyncio.get_running_loop().run_in_executor(None, function, *arguments)
    try:
        await until_done([work])
    except asyncio.CancelledError:
        if not work.cancelled():
            work.exception()  # seen; what counts now is that we were cancelled
        raise
    work.result()
