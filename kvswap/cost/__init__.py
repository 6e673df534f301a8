"""Fetch or prefill?  `estimate` decides and is pure; `calibration` remembers what was measured."""

from kvswap.cost.calibration import Calibration
from kvswap.cost.estimate import Link, Plan, PrefillCurve, Prices, decide

__all__ = ["Calibration", "Link", "Plan", "PrefillCurve", "Prices", "decide"]
