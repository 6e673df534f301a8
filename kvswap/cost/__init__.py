"""Fetch, prefill, or both?  `estimate` decides and is pure, `split` goes on deciding; `calibration` remembers."""

from kvswap.cost.calibration import Calibration
from kvswap.cost.estimate import MIX, OBJECTIVES, Link, Objective, Plan, PrefillCurve, Prices, decide
from kvswap.cost.split import Meeting, Split, Work

__all__ = [
    "MIX",
    "OBJECTIVES",
    "Calibration",
    "Link",
    "Meeting",
    "Objective",
    "Plan",
    "PrefillCurve",
    "Prices",
    "Split",
    "Work",
    "decide",
]
