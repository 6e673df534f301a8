"""The requests that this daemon works at, and the last that ended: what the page shows as it happens."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from aiohttp import web

from kvswap.api.events import FoundEvent, PlanEvent, PrefillEvent, ProgressEvent, TransferEvent
from kvswap.api.plans import PlanSummary
from kvswap.core.errors import KvswapError

_ENDED = 20  # requests that ended and are still shown
_LISTED = 50  # requests under way that are shown; more are counted


@dataclass(slots=True, eq=False)
class RequestState:
    """A request that takes its time: what it is, how far it got, and the way that was taken, with the reason."""

    verb: str
    began: float  # Unix seconds
    artifact: str | None = None
    plan: PlanSummary | None = None
    transfer: TransferEvent | None = None
    prefilled: PrefillEvent | None = None
    ended: float | None = None
    problem: str | None = None

    def note(self, event: ProgressEvent) -> None:
        """Take what an event says."""
        if isinstance(event, FoundEvent):
            self.artifact = event.artifact
        elif isinstance(event, PlanEvent):
            self.plan = event
        elif isinstance(event, TransferEvent):
            self.transfer = event
        elif isinstance(event, PrefillEvent):
            self.prefilled = event

    @property
    def seconds(self) -> float:
        """The seconds that it took, until now or its end."""
        return max(0.0, (self.ended or time.time()) - self.began)


@dataclass(slots=True)
class Running:
    """The requests of one daemon.  Used on its event loop."""

    _now: list[RequestState] = field(default_factory=list)
    _ended: deque[RequestState] = field(default_factory=lambda: deque(maxlen=_ENDED))

    def begin(self, verb: str) -> RequestState:
        """Note that a request begins."""
        work = RequestState(verb, time.time())
        self._now.append(work)
        return work

    def end(self, work: RequestState, error: BaseException | None = None) -> None:
        """Note that it ended, and how."""
        self._now.remove(work)
        work.ended = time.time()
        if error is not None:
            work.problem = error.message if isinstance(error, KvswapError) else "given up"
        self._ended.appendleft(work)

    @property
    def count(self) -> int:
        """The number of requests under way."""
        return len(self._now)

    def listed(self) -> list[RequestState]:
        """List the requests under way and then the last that ended, the newest first."""
        return self._now[: -_LISTED - 1 : -1] + list(self._ended)


RUNNING = web.AppKey("running", Running)
