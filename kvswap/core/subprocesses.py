"""Ending processes that were started in a session of their own, with whatever they started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


async def end_session(process: asyncio.subprocess.Process, grace_seconds: float) -> None:
    """End a process and all others of its session: SIGTERM, and SIGKILL where that does not end it in time.

    What the process leaves behind is killed.  Raises nothing for one that has ended.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await process.wait()
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
