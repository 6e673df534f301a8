"""How a whole climb of the ladder ended, as it is kept."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "disputed", "undecided", "wrong"]
WITHHELD = ("disputed", "wrong")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a whole climb for an artifact ended, by which version of the rules, and which steps had passed.

    *disputed*: it disagrees with `others` (artifact ids), and nothing has said who is right.  *undecided*: a step that
    was due could not be done.  *wrong*: a step found that it is not the model's cache, and caught
    nobody by it: this node made it itself, or the step is no proof of who is to blame (a structure, at V2).
    """

    artifact: str
    publisher: str
    verdict: Verdict
    rules: int
    levels: tuple[int, ...] = ()
    others: tuple[str, ...] = ()
    why: str = ""


def outcome_of(row: sqlite3.Row) -> Outcome:
    """Read a row of `outcomes`."""
    levels = tuple(int(level) for level in row["levels"].split())
    others = tuple(row["others"].split())
    return Outcome(row["artifact"], row["publisher"], row["verdict"], int(row["rules"]), levels, others, row["why"])
