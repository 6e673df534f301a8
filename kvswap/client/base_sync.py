"""The blocking form of `base_aio.py`.  Made from it by `.ci/unasync`: change that file, and run this."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from kvswap import api
from kvswap.client.answers import result_of, went_away
from kvswap.client.calls import Call
from kvswap.client.old import OldNames
from kvswap.client.sender_sync import Sender
from kvswap.client.target import Target

if TYPE_CHECKING:
    from kvswap.api.result import Result

R = TypeVar("R", bound="Result")
OnEvent = Callable[["api.ProgressEvent"], None]


class Caller(OldNames):
    """Base of the asyncio client: finds the daemon and calls it."""

    def __init__(self, home: str | Path | None = None, *, url: str | None = None, token: str | None = None) -> None:
        self._target = Target.of(home, url, token)
        self.home = self._target.home
        self._sender = Sender(self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the use of this client."""

    def _do(self, call: Call[R], on_event: OnEvent | None = None) -> R:
        with contextlib.closing(self._sender.lines(call)) as messages:
            for message in messages:
                if "event" not in message:
                    return result_of(message, call, self._target.where)
                if on_event is not None:
                    on_event(api.event_of(message))
        raise went_away()
