"""What a plan is to save.  Clients and command lines import this and nothing else of the planner."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Objective:
    """The goal of a plan: `time`, `money`, or the `mix` of both at the price of a second; and budgets."""

    by: str = "mix"
    max_seconds: float | None = None
    max_dollars: float | None = None
    max_bytes: int | None = None  # to be fetched


MIX = Objective()
OBJECTIVES = ("mix", "time", "money")
