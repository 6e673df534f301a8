"""Plans as callers see them: the results and events made of what the planner chose."""

from __future__ import annotations

from typing import Any

from kvswap.api.events import PlanEvent
from kvswap.api.plans import PlanFigures, PlanSummary, WayFigures
from kvswap.api.status import CodecFigures
from kvswap.cost import Option, Plan
from kvswap.cost.calibration import Calibration


def summary_of(plan: Plan) -> PlanSummary:
    """Make the summary of a plan."""
    return PlanSummary(action=plan.action, seconds=plan.seconds, dollars=plan.dollars, reason=plan.reason)


def plan_event(plan: Plan) -> PlanEvent:
    """Make the event that a way was chosen."""
    return PlanEvent(**ways_of(plan))


def ways_of(plan: Plan) -> dict[str, Any]:
    """Return the fields of `PlanFigures`."""
    ways = {name: _way(getattr(plan, name)) for name in ("prefill", "fetch", "hybrid", "host")}
    return {"action": plan.action, "seconds": plan.seconds, "dollars": plan.dollars, "reason": plan.reason, **ways}


def shortened(figures: PlanFigures) -> PlanSummary:
    """Make the summary of a plan that has been made already."""
    return PlanSummary(**{name: getattr(figures, name) for name in PlanSummary.__struct_fields__})


def codec_figures(calibration: Calibration) -> dict[str, CodecFigures]:
    """Return what was measured of each codec."""
    return {name: CodecFigures(**row) for name, row in calibration.codecs().items()}


def _way(option: Option | None) -> WayFigures | None:
    if option is None:
        return None
    return WayFigures(seconds=option.seconds, dollars=option.dollars, bytes=option.bytes)
