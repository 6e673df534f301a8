"""What the node and a job say to each other while it runs."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Told:
    """Messages from the listening thread to the working one, in order."""

    def __init__(self) -> None:
        self._messages: deque[dict[str, Any]] = deque()
        self._changed = threading.Condition()

    def put(self, message: dict[str, Any]) -> None:
        with self._changed:
            self._messages.append(message)
            self._changed.notify()

    def clear(self) -> None:
        """A new job begins: what was meant for the last one is of no use."""
        with self._changed:
            self._messages.clear()

    def take(self, seconds: float) -> list[dict[str, Any]]:
        """All there is; waits so long for the first."""
        with self._changed:
            if not self._messages:
                self._changed.wait(seconds)
            taken = list(self._messages)
            self._messages.clear()
            return taken


@dataclass(frozen=True, slots=True)
class Talk:
    """A job's side of it: what it is told, how it says something, and whether it is to stop (raises `Interrupted`)."""

    told: Told
    say: Callable[..., None]
    check: Callable[[], None]
