"""`python -m tests.swarm.jumping …`: a real daemon on a clock that jumps, and which can be counted.

SIGUSR1 moves every clock of the process on by twelve hours.  SIGUSR2 writes how many tasks, threads and descriptors
it has to the file that `SOAK_COUNTS` names.  `SOAK_OFFSET` is how far on the clocks are at the start, in seconds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

JUMP_SECONDS = 12 * 3600.0
_offset = [float(os.environ.get("SOAK_OFFSET", "0"))]


def _moved(clock: Callable[[], float]) -> Callable[[], float]:
    return lambda: clock() + _offset[0]


def _jump(*_: Any) -> None:
    _offset[0] += JUMP_SECONDS


def _count(*_: Any) -> None:
    """In the main thread, while its loop runs."""
    target = Path(os.environ["SOAK_COUNTS"])
    counts = {
        "tasks": len(asyncio.all_tasks()),
        "trio tasks": sum(type(o) is trio.lowlevel.Task for o in gc.get_objects()),
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
    }
    target.with_suffix(".new").write_text(json.dumps(counts))
    target.with_suffix(".new").replace(target)


if __name__ == "__main__":
    time.time = _moved(time.time)
    time.monotonic = _moved(time.monotonic)
    time.perf_counter = _moved(time.perf_counter)
    import trio._core._run

    trio._core._run.perf_counter = time.perf_counter  # its clock holds the function itself
    signal.signal(signal.SIGUSR1, _jump)
    signal.signal(signal.SIGUSR2, _count)
    from kvswap.cli.main import main

    sys.exit(main(sys.argv[1:]))
