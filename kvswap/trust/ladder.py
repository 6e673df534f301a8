"""The ladder: what can be checked of an artifact, from the cheapest to the dearest, as values.

| step | says | does not say |
|---|---|---|
| V0 | who signed it, that it has not expired, that its publisher is trusted | anything of a liar whom one trusts |
| V1 | the chunks are those that were signed | that they are right |
| V2 | lengths, structure, every number finite | that they are right |
| V3 | layer 0 is what these tokens give at these positions, all of them | anything of the layers above |
| V4 | the probe continues as the publisher said: compatible.  **Never security** | that it belongs to the text |
| V5 | at sampled positions every layer is what the model makes of the layers and tokens before | other positions |
| V6 | independent publishers agree | anything when they collude |
| V7 | everything is what the model makes of the text | - |

Doing the steps is the node's and the model process's; here is what they mean, and which of them are due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from kvswap.trust.noise import MICRO

Verdict = Literal["passed", "failed", "skipped"]


class Level(IntEnum):
    """A step of the ladder."""

    POLICY = 0
    DIGESTS = 1
    STRUCTURE = 2
    TOKENS = 3
    PROBE = 4
    SAMPLES = 5
    AGREEMENT = 6
    RECOMPUTE = 7


ALWAYS = (Level.POLICY, Level.DIGESTS, Level.STRUCTURE, Level.TOKENS)
STRANGER = (*ALWAYS, Level.SAMPLES, Level.AGREEMENT)
LAST = Level.RECOMPUTE
RULES = 3  # the version of what the steps look at: what passed by older ones is judged again (3: the chain, at V3)
PROOF_RULES = 2  # the version of what is a proof: by which an older one condemned, or withheld, is void


@dataclass(frozen=True, slots=True)
class Step:
    """One step's outcome.  `why` is for people: what was wrong, or why it was not done.

    `proven`: what is wrong is the publisher's doing, as `accusation.judge` found.
    """

    level: Level
    verdict: Verdict
    seconds: float = 0.0
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    proven: bool = False

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {"step": f"V{int(self.level)}", "name": self.level.name.lower(), "verdict": self.verdict}
        if self.verdict == "failed":
            out["proven"] = self.proven
        return out | {"seconds": round(self.seconds, 4), "why": self.why, **self.figures}


@dataclass(frozen=True, slots=True)
class Ladder:
    """The steps that were gone, or tried, in order."""

    steps: tuple[Step, ...]

    def passed(self, level: Level) -> bool:
        return any(s.level == level and s.verdict == "passed" for s in self.steps)

    @property
    def failed(self) -> Step | None:
        """The first step that found something wrong.  A probe that differs is no proof of anything."""
        return next((s for s in self.steps if s.verdict == "failed" and s.level != Level.PROBE), None)

    @property
    def unchecked(self) -> dict[str, str]:
        """What nobody looked at, and why: by step."""
        done = {s.level: s for s in self.steps}
        out = {}
        for level in Level:
            step = done.get(level)
            if step is None:
                out[f"V{int(level)}"] = "not asked for"
            elif step.verdict == "skipped":
                out[f"V{int(level)}"] = step.why
        return out

    def lacking(self, due: Sequence[Level]) -> list[Level]:
        """Those of the steps that are due which did not pass; where publishers are few, V6 cannot be due."""
        return [level for level in due if level != Level.AGREEMENT and not self.passed(level)]

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": [f"V{int(s.level)}" for s in self.steps if s.verdict == "passed"],
            "unchecked": self.unchecked,
            "steps": [s.to_json() for s in self.steps],
        }


def due(*, listed: bool) -> tuple[Level, ...]:
    """The steps for an artifact of a publisher on the allow-list (or oneself), or of a stranger."""
    return ALWAYS if listed else STRANGER


def up_to(level: int) -> tuple[Level, ...]:
    """All steps up to one."""
    return tuple(step for step in Level if step <= level)


def to_pipe(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps as the pipe carries them, which has no floats."""
    return [
        {
            "level": int(s.level),
            "verdict": s.verdict,
            "us": int(s.seconds * MICRO),
            "why": s.why,
            "proven": s.proven,
            "figures": {n: [int(v * MICRO)] if isinstance(v, float) else v for n, v in s.figures.items()},
        }
        for s in steps
    ]


def from_pipe(rows: Sequence[dict[str, Any]]) -> list[Step]:
    """The steps again."""
    return [
        Step(
            Level(row["level"]),
            row["verdict"],
            row["us"] / MICRO,
            row["why"],
            {n: v[0] / MICRO if isinstance(v, list) else v for n, v in row["figures"].items()},
            row["proven"],
        )
        for row in rows
    ]
