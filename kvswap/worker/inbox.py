"""The messages between the node and a job while it runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvswap.worker.conversation import JobEvent, Notice


class Inbox:
    """The inbox of the running job: messages from the listening thread, in order."""

    def __init__(self) -> None:
        self._messages: deque[Notice] = deque()
        self._changed = threading.Condition()

    def put(self, message: Notice) -> None:
        """Add a message, and wake the job if it waits."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def clear(self) -> None:
        """Drop all messages, which were for the previous job."""
        with self._changed:
            self._messages.clear()

    def take(self, seconds: float) -> list[Notice]:
        """Remove and return all messages; if there are none, wait at most `seconds` for the first."""
        with self._changed:
            if not self._messages:
                self._changed.wait(seconds)
            taken = list(self._messages)
            self._messages.clear()
            return taken


@dataclass(frozen=True, slots=True)
class JobPipe:
    """A job's side of the conversation: its inbox, `send` to send an event, and `check`.

    `check` raises `Interrupted` once the job is cancelled, `cancelled` says whether it is.
    """

    inbox: Inbox
    send: Callable[[JobEvent], None]
    check: Callable[[], None]
    cancelled: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class JobContext:
    """The surroundings of a job: the loaded model, the predictors that were read already, and its pipe."""

    loaded: Any
    predictors: Any
    pipe: JobPipe
