"""What comes with a request to the exchange: what the caller accepts, and where to tell of progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from kvswap.core.limits import LIMITS
from kvswap.cost import MIX, Objective, PrefillCurve

Progress = Callable[[dict[str, Any]], Awaitable[None]]


async def silent(event: dict[str, Any]) -> None:
    """A progress callback that shows nothing."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What the caller accepts beyond what is safe by itself."""

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
