"""The terms of a request to the exchange: what the caller accepts, and where to report progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from kvswap.api import Terms
from kvswap.api.events import ProgressEvent
from kvswap.cost import PrefillCurve
from kvswap.worker.conversation import FileEvent, JobEvent

__all__ = ["STRICT", "LookupTerms", "Progress", "Terms", "lookup_of", "passing_on", "silent"]

Progress = Callable[[ProgressEvent], Awaitable[None]]


async def silent(event: ProgressEvent) -> None:
    """Ignore an event: the progress callback of callers that show nothing."""


def passing_on(progress: Progress) -> Callable[[JobEvent], Awaitable[None]]:
    """Make a callback for the model process, which passes on to a caller how far a job is."""

    async def on_event(event: JobEvent) -> None:
        if not isinstance(event, FileEvent):
            await progress(event)

    return on_event


class LookupTerms(Terms, frozen=True, kw_only=True):
    """The terms of a look-up of a shared prefix, with what only the node knows of who asks."""

    curve: PrefillCurve | None = None  # what prefilling costs whoever asks, unless it is this node's own model process
    lookup_seconds: float | None = None  # wait no longer for peers to say what they have
    local: bool = False  # look only into the own store


def lookup_of(terms: Terms, **more: Any) -> LookupTerms:
    """Take terms as those of a look-up: they are, or they limit nothing beyond what `more` says."""
    if isinstance(terms, LookupTerms) and not more:
        return terms
    return LookupTerms(**{name: getattr(terms, name) for name in Terms.__struct_fields__}, **more)


STRICT = Terms()
