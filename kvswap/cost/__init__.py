"""The choice between fetching, prefilling, and both at once.

`objective` is what a caller wants to save, `estimate` decides beforehand and is pure, `split` goes on deciding while
both are under way, `calibration` remembers what was measured.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kvswap.cost.objective import MIX, OBJECTIVES, Objective

if TYPE_CHECKING:
    from kvswap.cost.calibration import Calibration
    from kvswap.cost.estimate import CacheNeed, Link, Option, Plan, PrefillCurve, Prices, beside_host, decide
    from kvswap.cost.split import Meeting, Split, Work

__all__ = [
    "MIX",
    "OBJECTIVES",
    "CacheNeed",
    "Calibration",
    "Link",
    "Meeting",
    "Objective",
    "Option",
    "Plan",
    "PrefillCurve",
    "Prices",
    "Split",
    "Work",
    "beside_host",
    "decide",
]


def __getattr__(name: str) -> Any:
    # Lazy: a client needs an objective, and nothing of what plans with it.
    if name == "Calibration":
        module = "calibration"
    elif name in ("Meeting", "Split", "Work"):
        module = "split"
    elif name in __all__:
        module = "estimate"
    else:
        raise AttributeError(f"module 'kvswap.cost' has no attribute {name!r}")
    return getattr(import_module(f"kvswap.cost.{module}"), name)
