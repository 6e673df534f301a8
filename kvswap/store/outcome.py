"""The outcome of a whole verification, as it is kept."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "disputed", "undecided", "wrong"]
WITHHELD = ("disputed", "wrong")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a whole verification of an artifact: the verdict, by which rules, and which levels had passed.

    *disputed*: it disagrees with `others` (artifact ids), and nothing has said who is right.  *undecided*: a level that
    was due could not be done.  *wrong*: a level found that it is not the model's cache, and banned
    nobody for it: this node made it itself, or the level is no proof of who is to blame (a structure, at V2).
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
