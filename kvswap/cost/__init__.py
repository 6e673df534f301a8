"""The choice between fetching, prefilling, and both at once.

`estimate` decides beforehand and is pure, `split` goes on deciding while both are under way, `calibration` remembers
what was measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvswap.cost.estimate import (
    MIX,
    OBJECTIVES,
    CacheNeed,
    Link,
    Objective,
    Option,
    Plan,
    PrefillCurve,
    Prices,
    beside_host,
    decide,
)
from kvswap.cost.split import Meeting, Split, Work

if TYPE_CHECKING:
    from kvswap.cost.calibration import Calibration

__all__ = [
    "MIX",
    "OBJECTIVES",
    "Calibration",
    "Link",
    "Meeting",
    "Objective",
    "Option",
    "Plan",
    "PrefillCurve",
    "Prices",
    "Split",
    "CacheNeed",
    "Work",
    "beside_host",
    "decide",
]


def __getattr__(name: str) -> Any:
    # Lazy: a client needs an objective, and nothing of the files that a node remembers in.
    if name == "Calibration":
        from kvswap.cost.calibration import Calibration

        return Calibration
    raise AttributeError(f"module 'kvswap.cost' has no attribute {name!r}")
