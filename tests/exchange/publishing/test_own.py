"""What a node does about an artifact of its own that it finds wrong: nothing on one slip, much on two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import IntegrityError
from kvswap.exchange.publishing.own import verify_own
from kvswap.store import Outcome
from kvswap.trust.levels import RULES, Level, LevelReport, LevelResult
from tests.exchange.test_fetch import world
from tests.support import Ingested, key, make_artifact, run

OWN = key(1000)  # the publisher of the first node of a world
WRONG = LevelReport(
    (LevelResult(Level.DIGESTS, "passed"), LevelResult(Level.SAMPLES, "failed", why="position 7 differs"))
)
RIGHT = LevelReport((LevelResult(Level.DIGESTS, "passed"), LevelResult(Level.RECOMPUTE, "passed")))
PART = LevelReport((LevelResult(Level.DIGESTS, "passed"), LevelResult(Level.SAMPLES, "passed")))
REFUSED = IntegrityError("chunk 3 holds a value that is not finite")


class Looks:
    """Comes to these results, one after the other, and remembers what was asked."""

    def __init__(self, *results: LevelReport | Exception) -> None:
        self.results, self.asked = list(results), []

    async def __call__(self, levels: Sequence[Level]) -> LevelReport:
        self.asked.append(tuple(levels))
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def looked(tmp_path: Path, looks: Looks, before: str | None = None, damage: bool = False) -> dict[str, Any]:
    """Look at an own artifact of a node: what it comes to, and what became of the artifact."""
    out: dict[str, Any] = {}

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False)
            made: Ingested = make_artifact(OWN)
            w.give(node, made)
            if damage:
                node.store._files.path(next(iter(made.chunks))).unlink()
                node.store.verify()
            records = node.trust.records
            if before is not None:
                records.put_outcome(Outcome(made.id, made.manifest.publisher, before, RULES, why="before"))
            try:
                out["ladder"] = await verify_own(node, made.statement, looks, (Level.SAMPLES,))
            except IntegrityError as error:
                out["raised"] = error
            outcome = records.outcome(made.id)
            out["outcome"] = None if outcome is None else outcome.verdict
            out["listed"] = node.store.get_artifact(made.id) is not None
            out["events"] = [e["event"] for e in node.events.recent()]
            out["withdrawn"] = records.withdrawn_by(str(OWN.peer_id))

    run(body())
    return out


def test_what_is_right_is_left_alone(tmp_path: Path) -> None:
    looks = Looks(PART)
    out = looked(tmp_path, looks)
    assert out["ladder"] is PART and looks.asked == [(Level.SAMPLES,)]
    assert out["listed"] and out["outcome"] is None and "found_wrong" not in out["events"]


def test_found_wrong_twice_it_is_withdrawn_with_what_was_wrong(tmp_path: Path) -> None:
    looks = Looks(WRONG, WRONG)
    out = looked(tmp_path, looks)
    assert out["ladder"] is WRONG and Level.RECOMPUTE in looks.asked[1]  # everything is computed again
    assert not out["listed"] and "found_wrong" in out["events"]
    (why,) = out["withdrawn"].values()
    assert "position 7 differs" in why and why.startswith("its own publisher found it wrong: V5")


@pytest.mark.parametrize(("second", "outcome"), [(RIGHT, None), (PART, "wrong")])
def test_a_slip_of_this_machine_withdraws_nothing(tmp_path: Path, second: LevelReport, outcome: str | None) -> None:
    """It is listed again where all of it was computed again; until then it is kept back."""
    out = looked(tmp_path, Looks(WRONG, second))
    assert out["ladder"] is WRONG and out["listed"] and out["withdrawn"] == {} and out["outcome"] == outcome


def test_what_was_found_wrong_before_needs_no_third_look(tmp_path: Path) -> None:
    looks = Looks(WRONG)
    out = looked(tmp_path, looks, before="wrong")
    assert len(looks.asked) == 1 and not out["listed"] and len(out["withdrawn"]) == 1


@pytest.mark.parametrize(("found", "outcome"), [(RIGHT, None), (PART, "wrong")])
def test_what_was_found_wrong_before_is_listed_again_when_all_of_it_is_right(
    tmp_path: Path, found: LevelReport, outcome: str | None
) -> None:
    out = looked(tmp_path, Looks(found), before="wrong")
    assert out["listed"] and out["outcome"] == outcome and out["withdrawn"] == {}


def test_what_fails_its_structure_is_wrong_as_well_and_the_error_goes_on(tmp_path: Path) -> None:
    out = looked(tmp_path, Looks(REFUSED, REFUSED))
    assert out["raised"] is REFUSED and not out["listed"]
    (why,) = out["withdrawn"].values()
    assert "not finite" in why


def test_a_chunk_that_is_damaged_here_is_not_held_against_what_was_signed(tmp_path: Path) -> None:
    out = looked(tmp_path, Looks(REFUSED), damage=True)
    assert out["raised"] is REFUSED and out["listed"] and out["withdrawn"] == {} and out["outcome"] is None


def test_a_probe_that_differs_proves_nothing(tmp_path: Path) -> None:
    probe = LevelReport((LevelResult(Level.PROBE, "failed", why="another machine"),))
    out = looked(tmp_path, Looks(probe))
    assert out["ladder"] is probe and out["listed"] and out["outcome"] is None
