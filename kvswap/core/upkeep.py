"""Maintenance loops and writer threads that one error must not end.

A node that runs for months meets every error once: a full disk, a damaged page, a thread that cannot be started.  A
loop that ends with the error takes away what nobody misses until much later.  So there is one form of such loops: an
error is shown (`kvswap status`, under `degraded`), waited after, and cleared when a step works again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kvswap.core.errors import KvswapError

T = TypeVar("T")
OnProblem = Callable[[str, "str | None"], None]

_logger = logging.getLogger("kvswap.upkeep")
_TEXT = 300
_LOOK_SECONDS = 1.0  # how often a waiting caller checks that the thread still lives


class Problems(dict[str, str]):
    """The parts that do not work at the moment, by name, each with its reason.

    `kvswap status` shows them under `degraded`.  May be changed from any thread.
    """

    def note(self, name: str, error: BaseException | str) -> bool:
        """Record why the part `name` does not work; return True when it worked until now.

        The log has the traceback.
        """
        text = error if isinstance(error, str) else describe(error)
        new = name not in self
        if self.get(name) != text:
            foreign = isinstance(error, BaseException) and not isinstance(error, KvswapError)
            _logger.warning("%s: %s", name, text, exc_info=error if foreign else None)  # type: ignore[arg-type]
        self[name] = text
        return new

    def clear_one(self, name: str) -> bool:
        """Record that the part `name` works; return True when it did not until now."""
        return self.pop(name, None) is not None


def describe(error: BaseException) -> str:
    """Format an error as one line of at most 300 characters: kvswap's own by their message, others with their type."""
    text = error.message if isinstance(error, KvswapError) else f"{type(error).__name__}: {error}"
    return " ".join(text.removesuffix(": ").split())[:_TEXT]


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pauses after failures in a row, in seconds: `first`, twice that, and so on up to `most`."""

    first: float = 1.0
    most: float = 60.0

    def after(self, failures: int) -> float:
        """Return the seconds to wait after the given number of failures in a row."""
        return min(self.most, self.first * 2.0 ** min(failures - 1, 60))


async def forever(
    name: str,
    step: Callable[[], Awaitable[object]],
    problems: Problems,
    *,
    pause: float | Callable[[], float],
    backoff: Backoff = Backoff(),
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    on_problem: OnProblem | None = None,
) -> None:
    """Await `step()` again and again, `pause` seconds apart, until this is cancelled.

    An exception of a step is noted in `problems` under `name`, waited after for longer each time, and cleared by the
    next step that works.  `on_problem` is called with the name and the reason, or None, when that changes.  In trio
    give
    `trio.sleep` as `sleep`.
    """
    failures = 0
    while True:
        try:
            await step()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _cancelled():
                raise
            failures += 1
            wait = backoff.after(failures)
            if problems.note(name, error) and on_problem is not None:
                on_problem(name, problems[name])
        else:
            failures = 0
            wait = pause() if callable(pause) else pause
            if problems.clear_one(name) and on_problem is not None:
                on_problem(name, None)
        if _cancelled():  # and the step swallowed the cancellation
            raise asyncio.CancelledError
        await sleep(wait)


def _cancelled() -> bool:
    """Return True if this task was cancelled, and not something that its step waited for."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # not asyncio: trio's cancellations are not caught as a step's errors
        return False
    return task is not None and task.cancelling() > 0


def forever_in_thread(
    name: str,
    step: Callable[[], object],
    closed: threading.Event,
    problems: Problems,
    *,
    pause: float | Callable[[], float],
    backoff: Backoff = Backoff(),
) -> None:
    """Call `step()` again and again, as `forever` does, until `closed` is set.  Blocks: it is a thread's target."""
    failures = 0
    while not closed.is_set():
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a loop of upkeep ends with nothing
            failures += 1
            wait = backoff.after(failures)
            problems.note(name, error)
        else:
            failures = 0
            wait = pause() if callable(pause) else pause
            problems.clear_one(name)
        closed.wait(wait)


class Writer(Generic[T]):
    """A thread that does what is handed over, in order and in batches.  It starts when it is needed.

    What waits is bounded in bytes: a caller that adds more waits.  An error costs the batch it came from and nothing
    else: its bytes are given back, the problem is noted, and the thread goes on.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Sequence[T]], None],
        *,
        budget: int,
        batch: int = 64,
        problems: Problems | None = None,
    ) -> None:
        """Make a writer; its thread starts with the first item.

        `work` is called from the thread with 1 to `batch` items; `budget` bytes may wait or be worked on.
        """
        self._name, self._work, self._budget, self._batch = name, work, budget, batch
        self.problems = problems if problems is not None else Problems()
        self._waiting: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._closing = False
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def waiting_bytes(self) -> int:
        """The bytes that are waiting or being worked on."""
        return self._bytes

    @property
    def alive(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def add(self, item: T, size: int) -> None:
        """Hand over one item of `size` bytes; wait while more than the budget is on its way.

        Where no thread can be started, and after `close`, the caller does the work itself.
        """
        with self._changed:
            while self._bytes and self._bytes + size > self._budget and self._running():
                self._changed.wait(_LOOK_SECONDS)
            if self._running():
                self._waiting.append((item, size))
                self._bytes += size
                self._changed.notify_all()
                return
            left, self._waiting = [*self._waiting, (item, size)], deque()
            self._bytes += size
        for one in left:
            self._do([one])

    def _running(self) -> bool:
        """Return True if there is a thread, after starting one unless this is closed.  The lock must be held."""
        if self.alive:
            return not self._closing
        if self._closing:
            return False
        thread = threading.Thread(target=self._run, name=f"kvswap-{self._name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads or memory
            self.problems.note(self._name, error)
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            self._do(batch)

    def _next(self) -> list[tuple[T, int]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))] or None

    def _do(self, batch: list[tuple[T, int]]) -> None:
        try:
            self._work([item for item, _ in batch])
            self.problems.clear_one(self._name)
        except Exception as error:  # noqa: BLE001 - the others are written all the same
            self.problems.note(self._name, error)
        finally:
            with self._changed:
                self._bytes -= sum(size for _, size in batch)
                self._changed.notify_all()

    def close(self) -> None:
        """Do what is waiting, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        with self._changed:
            left, self._waiting = list(self._waiting), deque()
        for one in left:  # left by a thread that was ended by force
            self._do([one])
