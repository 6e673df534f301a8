"""Fetch or prefill?  `estimate` decides and is pure; `calibration` remembers what was measured."""

from kvswap.cost.calibration import Calibration
from kvswap.cost.estimate import MIX, OBJECTIVES, Link, Objective, Plan, PrefillCurve, Prices, decide

__all__ = ["MIX", "OBJECTIVES", "Calibration", "Link", "Objective", "Plan", "PrefillCurve", "Prices", "decide"]
