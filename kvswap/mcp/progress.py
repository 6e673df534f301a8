"""Progress notifications: what the daemon reports of a request, passed on to whoever called the tool."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from kvswap.api import events

Report = Callable[[float, float | None, str | None], Awaitable[None]]


class CallProgress:
    """A view of events that is never behind: where they come faster than they are sent, the newest is.

    What is reported only grows, as the protocol demands: the whole part counts the stages that are over, the rest is
    the share of this one.
    """

    def __init__(self, most_tokens: int = 0) -> None:
        self._most_tokens = max(1, most_tokens)
        self._stage, self._stages, self._made = "", -1, 0
        self._reported = 0.0
        self._message = ""
        self._ready = asyncio.Event()

    def __call__(self, event: events.ProgressEvent) -> None:
        """Take an event; those without a share of anything are passed over."""
        match event:
            case events.PrefillEvent(blocks=int(blocks)) if blocks:
                self._advance("prefill", event.block / blocks, f"{event.tokens} tokens prefilled")
            case events.TransferEvent(total_bytes=int(total)) if total:
                part = (event.bytes + event.arriving) / total
                self._advance("transfer", part, f"{event.bytes} of {total} bytes fetched")
            case events.TokenEvent():
                self._made += 1
                self._advance("answer", self._made / self._most_tokens, f"{self._made} tokens of the answer")

    def _advance(self, stage: str, part: float, message: str) -> None:
        if stage != self._stage:
            self._stage, self._stages = stage, self._stages + 1
        now = self._stages + min(part, 1.0)
        if now > self._reported:
            self._reported, self._message = now, message
            self._ready.set()

    @contextlib.asynccontextmanager
    async def sent(self, report: Report) -> AsyncIterator[None]:
        """Send what is taken while this is open."""
        sending = asyncio.create_task(self._send(report))
        try:
            yield
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)  # who asked may be gone

    async def _send(self, report: Report) -> None:
        while True:
            await self._ready.wait()
            self._ready.clear()
            await report(self._reported, float(self._stages + 1), self._message)
