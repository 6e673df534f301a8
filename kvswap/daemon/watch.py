"""A watch on the event loop: how long it ever let everybody wait, and whether that was its own doing.

Whatever runs on the loop runs alone: a query, a large message, a garbage collection, or a thread that keeps Python's
lock all hold up every peer and every request.  The loop's selector sees each of these, as it is called between any two
steps.  On a machine that is too busy everything is late, a loop that does nothing as well, which is no fault of ours:
the kernel says for how long threads of this process were ready to run and were not let
(`/proc/self/task/*/schedstat`), and that is taken off.  A process that was stopped is told so when it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import selectors
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any

PAUSE_SECONDS = 0.1
_TICK_SECONDS = 0.04  # a loop with nothing to do wakes as often, so that a lock kept by another thread is noticed
_IDLE_SECONDS = 0.32  # where no thread does anything
_IDLE_SHARE = 0.05  # of one core's time: less than that is nothing
_OTHERS_EVERY = 10  # ticks between looks at the other threads
_TASKS = "/proc/self/task"

_logger = logging.getLogger("kvswap.watch")


@dataclass(slots=True)
class Seen:
    """The pauses that were seen since the watch began, in seconds.

    `longest` has what the machine did taken off; `pauses` counts those over 0.1 s, `excused` those that would have been
    as long without the machine's part in them.
    """

    began: float = 0.0  # monotonic
    longest: float = 0.0
    pauses: int = 0
    excused: int = 0


class Watch:
    """Watches one event loop, made with `new_loop`.  Call `begin` when it is to count."""

    def __init__(self) -> None:
        self.seen = Seen()
        self.measured = _delay(threading.get_native_id()) is not None
        self._woke = 0.0
        self._watching = False
        self._stopped = False  # since the last look
        self._ticks = 0
        self._pause, self._used = _TICK_SECONDS, 0.0  # before the next tick; CPU-seconds of this process at the last
        self._loop: asyncio.AbstractEventLoop | None = None
        self._own, self._own_delay = 0, 0.0
        self._others: dict[int, float] = {}

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Make an event loop that this watches."""
        return asyncio.SelectorEventLoop(_Selector(self))

    def begin(self) -> None:
        """Count from now on.  Call on the loop, in the main thread."""
        self._loop = asyncio.get_running_loop()
        self._own = threading.get_native_id()
        with contextlib.suppress(ValueError, AttributeError):  # in another thread, or where there is no such signal
            signal.signal(signal.SIGCONT, self._continued)
        self._watching, self._stopped, self.seen = True, False, Seen(began=time.monotonic())
        self._woke = time.monotonic()
        self._tick()

    def to_json(self) -> dict[str, Any]:
        """Return what `kvswap status` shows under `loop`.

        `measured` is false where the kernel does not say for how long a thread was not let run: then nothing is
        excused for that.
        """
        return {
            "longest_pause_seconds": round(self.seen.longest, 4),
            "pauses": self.seen.pauses,
            "excused": self.seen.excused,
            "watched_seconds": round(time.monotonic() - self.seen.began, 1) if self._watching else 0.0,
            "measured": self.measured,
        }

    # -- called by the selector --------------------------------------------------------------------

    def worked(self) -> float:
        """Note that all that was ready has run; returns the time."""
        now = time.monotonic()
        if self._watching:
            self._look(now - self._woke)
        return now

    def woke(self, asked: float, timeout: float | None) -> None:
        """Note that the loop runs again, `timeout` seconds after `asked` at the latest."""
        self._woke = time.monotonic()
        if self._watching and timeout is not None:
            self._look(self._woke - asked - max(0.0, timeout))

    # ----------------------------------------------------------------------------------------------

    def _continued(self, *_: object) -> None:
        self._stopped = True

    def _look(self, seconds: float) -> None:
        stopped, self._stopped = self._stopped, False
        if seconds <= self.seen.longest and seconds <= PAUSE_SECONDS:
            return
        own = 0.0 if stopped else seconds
        if own > _TICK_SECONDS:
            own = max(0.0, own - self._held_up())
        if own > PAUSE_SECONDS:
            self.seen.pauses += 1
            _logger.warning("the event loop was held up for %.3f s", own)
        elif seconds > PAUSE_SECONDS:
            self.seen.excused += 1
        self.seen.longest = max(self.seen.longest, own)

    def _held_up(self) -> float:
        """For how long, lately, one of our threads was ready and not let run: perhaps the one with Python's lock."""
        now = _delays()
        waited = [now[thread] - before for thread, before in self._others.items() if thread in now]
        if (own := now.get(self._own)) is not None:
            waited.append(own - self._own_delay)
        self._others, self._own_delay = now, own or 0.0
        return max(waited, default=0.0)

    def _tick(self) -> None:
        self._own_delay = _delay(self._own) or 0.0
        used = time.process_time()
        idle = used - self._used < _IDLE_SHARE * self._pause
        if idle or self._ticks % _OTHERS_EVERY == 0:
            self._others = _delays()
        self._ticks += 1
        self._pause, self._used = min(2 * self._pause, _IDLE_SECONDS) if idle else _TICK_SECONDS, used
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_later(self._pause, self._tick)


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type, unused-ignore]
    """Tells the watch when the loop begins to wait, and when it goes on."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        asked = self._watch.worked()
        ready = super().select(timeout)
        self._watch.woke(asked, timeout)
        return ready


def _delay(thread: int) -> float | None:
    """Seconds for which a thread of this process was ready and did not run; None where that is not told."""
    try:
        # Through the system's own calls: this runs always, and a `Path` takes three times as long.
        descriptor = os.open(f"{_TASKS}/{thread}/schedstat", os.O_RDONLY)
        try:
            return int(os.read(descriptor, 128).split()[1]) / 1e9
        finally:
            os.close(descriptor)
    except (OSError, ValueError, IndexError):
        return None


def _delays() -> dict[int, float]:
    found: dict[int, float] = {}
    with contextlib.suppress(OSError), os.scandir(_TASKS) as tasks:
        for task in tasks:
            if (delay := _delay(int(task.name))) is not None:
                found[int(task.name)] = delay
    return found
