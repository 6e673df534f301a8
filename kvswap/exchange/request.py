"""The terms of a request to the exchange: what the caller accepts, and where to report progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from kvswap.core.limits import LIMITS
from kvswap.cost import MIX, Objective, PrefillCurve

Progress = Callable[[dict[str, Any]], Awaitable[None]]


async def silent(event: dict[str, Any]) -> None:
    """Ignore an event: the progress callback of callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of a caller: what it accepts beyond what is safe by itself, and how costs are weighed."""

    force: bool = False  # fetch although the plan says that prefilling is better
    trust_on_first_use: bool = False  # trust the publisher from now on, if not known yet
    inexact: bool = False  # take a cache that is not the model's own to the bit
    strangers: bool = False  # take what a publisher made who is not listed, once it is verified
    samples: int = LIMITS.usual_samples  # positions that are computed again for that
    group: str | None = None  # look only among what is sealed for this group
    objective: Objective = MIX
    curve: PrefillCurve | None = None  # what prefilling costs whoever asks, unless it is this node's own model process
    lookup_seconds: float | None = None  # wait no longer for peers to say what they have
    local: bool = False  # look only into the own store


STRICT = Terms()
