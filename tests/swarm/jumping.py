"""`python -m tests.swarm.jumping …`: a real daemon on a clock that jumps, and which can be counted.

SIGUSR1 moves every clock of the process on by twelve hours.  SIGUSR2 writes how many tasks, threads and descriptors
it has to the file that `SOAK_COUNTS` names.  `SOAK_OFFSET` is how far on the clocks are at the start, in seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.swarm import tasks

JUMP_SECONDS = 12 * 3600.0
_real_run = trio.run
_runs: list[trio.lowlevel.TrioToken] = []  # of the runs that began, the newest last
_offset = [float(os.environ.get("SOAK_OFFSET", "0"))]


def _moved(clock: Callable[[], float]) -> Callable[[], float]:
    return lambda: clock() + _offset[0]


def _jump(*_: Any) -> None:
    _offset[0] += JUMP_SECONDS


def _count(*_: Any) -> None:
    """In the main thread, while its loop runs; the tasks of trio are counted in its own."""
    target = Path(os.environ["SOAK_COUNTS"])
    counts = {
        "tasks": len(asyncio.all_tasks()),
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }

    def tell() -> None:
        kinds = tasks.of_trio()
        every = counts | {"trio tasks": kinds.total()}
        target.with_suffix(".new").write_text(json.dumps({"counts": every, "kinds": kinds}))
        target.with_suffix(".new").replace(target)

    _runs[-1].run_sync_soon(tell)


async def _noted(real: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    _runs.append(trio.lowlevel.current_trio_token())
    return await real(*arguments)


def _run(main: Callable[..., Awaitable[Any]], *arguments: Any, **more: Any) -> Any:
    """`trio.run`, which is noted."""
    return _real_run(partial(_noted, main), *arguments, **more)


if __name__ == "__main__":
    time.time = _moved(time.time)
    time.monotonic = _moved(time.monotonic)
    time.perf_counter = _moved(time.perf_counter)
    import trio._core._run

    trio._core._run.perf_counter = time.perf_counter  # its clock holds the function itself
    trio.run = _run
    signal.signal(signal.SIGUSR1, _jump)
    signal.signal(signal.SIGUSR2, _count)
    from kvswap.cli.main import main

    sys.exit(main(sys.argv[1:]))
