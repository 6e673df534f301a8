"""The verification levels: what can be checked of an artifact, from the cheapest check to the dearest, as values.

| level | says | does not say |
|---|---|---|
| V0 | who signed it, that it has not expired, that its publisher is trusted | anything if a trusted publisher lies |
| V1 | the chunks are those that were signed | that they are right |
| V2 | lengths, structure, every number finite | that they are right |
| V3 | layer 0 is what these tokens give at these positions, all of them | anything of the layers above |
| V4 | the probe continues as the publisher said: compatible.  **Never security** | that it belongs to the text |
| V5 | at sampled positions every layer is what the model makes of the layers and tokens before | other positions |
| V6 | independent publishers agree | anything when they collude |
| V7 | everything is what the model makes of the text | - |

The node and the model process run the checks; here is what they mean, and which of them are due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

from kvswap.core.words import LEVELS
from kvswap.trust.figures import CheckFigures

Verdict = Literal["passed", "failed", "skipped"]


class Level(IntEnum):
    """A verification level; the number is that of its name, V0 to V7."""

    POLICY = 0
    DIGESTS = 1
    STRUCTURE = 2
    TOKENS = 3
    PROBE = 4
    SAMPLES = 5
    AGREEMENT = 6
    RECOMPUTE = 7

    @property
    def words(self) -> str:
        """The check of this level in words, as messages name it."""
        return LEVELS[self]


ALWAYS = (Level.POLICY, Level.DIGESTS, Level.STRUCTURE, Level.TOKENS)
UNTRUSTED = (*ALWAYS, Level.SAMPLES, Level.AGREEMENT)
LAST = Level.RECOMPUTE
RULES = 3  # version of what the checks look at; a pass by older rules is checked again (3: V3 checks the chain)
PROOF_RULES = 2  # version of what counts as proof; verdicts by older rules are void


@dataclass(frozen=True, slots=True)
class LevelResult:
    """The outcome of one check.

    `why` is for people: what was wrong, or why the check was not done.  `proven`: what is wrong is the publisher's
    doing, as `accusation.judge` found.  `figures` holds what was measured.
    """

    level: Level
    verdict: Verdict
    seconds: float = 0.0
    why: str = ""
    figures: CheckFigures = CheckFigures()  # noqa: RUF009 - it is frozen
    proven: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form; `proven` is in it only where the check failed."""
        out: dict[str, Any] = {"step": f"V{int(self.level)}", "name": self.level.name.lower(), "verdict": self.verdict}
        if self.verdict == "failed":
            out["proven"] = self.proven
        return out | {"seconds": round(self.seconds, 4), "why": self.why, **self.figures.to_json()}


@dataclass(frozen=True, slots=True)
class LevelReport:
    """The checks of an artifact that were run or skipped, in order."""

    results: tuple[LevelResult, ...]

    def passed(self, level: Level) -> bool:
        """Return True if the check of this level passed."""
        return any(s.level == level and s.verdict == "passed" for s in self.results)

    @property
    def failed(self) -> LevelResult | None:
        """The first check that found something wrong, or None.

        A probe (V4) that differs proves nothing and is left out.
        """
        return next((s for s in self.results if s.verdict == "failed" and s.level != Level.PROBE), None)

    @property
    def unchecked(self) -> dict[str, str]:
        """The levels that were not checked, and why, by their names (V0 to V7)."""
        done = {s.level: s for s in self.results}
        out = {}
        for level in Level:
            result = done.get(level)
            if result is None:
                out[f"V{int(level)}"] = "not asked for"
            elif result.verdict == "skipped":
                out[f"V{int(level)}"] = result.why
        return out

    def lacking(self, due: Sequence[Level]) -> list[Level]:
        """List the levels in `due` that did not pass.  V6 never counts: there may be too few publishers for it."""
        return [level for level in due if level != Level.AGREEMENT and not self.passed(level)]

    @property
    def names_passed(self) -> list[str]:
        """The levels that passed, by their names (V0 to V7)."""
        return [f"V{int(s.level)}" for s in self.results if s.verdict == "passed"]


def due(*, listed: bool) -> tuple[Level, ...]:
    """Return the levels that are due for an artifact of a trusted publisher (`listed`, oneself too) or of another."""
    return ALWAYS if listed else UNTRUSTED


def up_to(level: int) -> tuple[Level, ...]:
    """Return all levels up to one, this included."""
    return tuple(result for result in Level if result <= level)
