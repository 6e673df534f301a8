"""The base of the asyncio client: it finds and calls the daemon.  The blocking one is made of it by `.ci/unasync`."""

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
from kvswap.client.sender_aio import AsyncSender
from kvswap.client.target import Target

if TYPE_CHECKING:
    from kvswap.api.result import Result

R = TypeVar("R", bound="Result")
OnEvent = Callable[["api.ProgressEvent"], None]


class AsyncCaller(OldNames):
    """Base of the asyncio client: finds the daemon and calls it."""

    def __init__(self, home: str | Path | None = None, *, url: str | None = None, token: str | None = None) -> None:
        self._target = Target.of(home, url, token)
        self.home = self._target.home
        self._sender = AsyncSender(self._target)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the use of this client."""

    async def _do(self, call: Call[R], on_event: OnEvent | None = None) -> R:
        async with contextlib.aclosing(self._sender.lines(call)) as messages:
            async for message in messages:
                if "event" not in message:
                    return result_of(message, call, self._target.where)
                if on_event is not None:
                    on_event(api.event_of(message))
        raise went_away()
