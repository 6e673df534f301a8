"""Fetch, prefill, or both?  `estimate` decides and is pure, `split` goes on deciding; `calibration` remembers."""

from kvswap.cost.calibration import Calibration
from kvswap.cost.estimate import (
    MIX,
    OBJECTIVES,
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
    "Work",
    "beside_host",
    "decide",
]
