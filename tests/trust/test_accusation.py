"""When a difference is a proof: every condition of it alone, over every step and verdict."""

from __future__ import annotations

import itertools
from dataclasses import fields
from typing import Any

import msgspec
import pytest

from kvswap.artifact.manifest import DocumentRef, Numerics
from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.core.errors import IntegrityError
from kvswap.trust import accusation
from kvswap.trust.accusation import Grounds, accuses, claims, comparable, judge, of_error, proof, uncheckable, unusable
from kvswap.trust.levels import ALWAYS, UNTRUSTED, Level, LevelReport, LevelResult

CONDITIONS = [field.name for field in fields(Grounds)]
WHOLE = Grounds(**dict.fromkeys(CONDITIONS, ""))
PROVES = {Level.STRUCTURE, Level.TOKENS, Level.SAMPLES, Level.AGREEMENT, Level.RECOMPUTE}
NUMERICS = Numerics("blocks", "sdpa", "float32", "2.0", "5.0", "cpu", "AVX2", 2, "bitwise")
VERDICTS: tuple[Any, ...] = ("passed", "failed", "skipped")


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_a_step_is_a_proof_where_all_conditions_hold_and_it_can_be_one(level: Level, verdict: Any) -> None:
    step = judge(LevelResult(level, verdict, why="w"), WHOLE)
    assert step.proven == accuses(step) == (verdict == "failed" and level in PROVES)
    assert (step.level, step.verdict, step.why) == (level, verdict, "w")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("verdict", VERDICTS)
def test_where_one_condition_is_lacking_nobody_is_accused(condition: str, level: Level, verdict: Any) -> None:
    for grounds in (_without(WHOLE, condition, "a reason"), Grounds(**_all_but(condition))):
        step = judge(LevelResult(level, verdict, why="w"), grounds)
        assert not step.proven and not accuses(step)
        if verdict != "failed" or level not in PROVES - {Level.STRUCTURE}:
            assert (step.verdict, step.why) == (verdict, "w")  # a structure that is wrong is of no use, whoever made it
        else:
            assert step.verdict == "skipped" and grounds.lacking[0] in step.why


def _all_but(condition: str) -> dict[str, str]:
    """Conditions that were looked at; the one that is left out was not."""
    return {name: "" for name in CONDITIONS if name != condition}


def _without(grounds: Grounds, name: str, why: str) -> Grounds:
    return Grounds(**{field: getattr(grounds, field) for field in CONDITIONS} | {name: why})


def test_nothing_that_was_not_looked_at_holds() -> None:
    assert len(Grounds().lacking) == len(CONDITIONS) == 6


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("proven", [True, False])
def test_what_crosses_the_pipe_is_what_was_judged(level: Level, proven: bool) -> None:
    back = of_error(proof(LevelResult(level, "failed", why="w", proven=proven), "c"))
    if level not in PROVES:
        assert back is None
    else:
        assert back is not None and (back.level, back.verdict, back.why, back.proven) == (level, "failed", "w", proven)
        assert accuses(back) is proven


@pytest.mark.parametrize("details", [{}, {"step": "V2"}, {"step": "V2", "proven": 1}, {"step": "V2", "proven": "yes"}])
def test_an_error_that_does_not_say_that_it_is_a_proof_is_none(details: dict[str, Any]) -> None:
    step = of_error(IntegrityError("w", **details))
    assert step is None or not accuses(step)
    assert of_error(IntegrityError("w", step="V9", proven=True)) is None


@pytest.mark.parametrize("name", [field for field in Numerics.__struct_fields__ if field not in ("threads", "claim")])
def test_each_part_of_the_environment_makes_a_class_of_its_own(name: str) -> None:
    assert comparable(NUMERICS, NUMERICS) == ""
    told = comparable(msgspec.structs.replace(NUMERICS, **{name: "another"}), NUMERICS)
    assert name in told and "another" in told


def test_threads_and_claims_are_in_the_noise() -> None:
    assert comparable(msgspec.structs.replace(NUMERICS, threads=64, claim="tolerance"), NUMERICS) == ""


class Said:
    """What `claims` reads of a manifest, which as a real one would have to be made anew for each case."""

    def __init__(self, wrong: set[str]) -> None:
        self.lossless, self.codecs = "divergence" not in wrong, ["int8"]
        self.document = None if "document" in wrong else DocumentRef(b"\0" * 32, 1, "text/plain")
        self.prefix = self
        self.special_tokens = "prefix.special_tokens" not in wrong
        self.template = "a template" if "prefix.template" in wrong else None
        self.probe = self
        self.tokens = [] if "probe" in wrong else [1]
        self.layout, state = self, LayerSpec("state", (TensorSpec("conv.0", "checkpoint", (4, 3)),))
        self.layers = [state] if "layout" in wrong else [state, LayerSpec.key_value("full", 1, 2, 2)]


EXACTNESS_CLAIMS = ["divergence", "document", "layout", "prefix.special_tokens", "prefix.template", "probe"]
HARMLESS = {"document", "probe"}


CLAIMED = [set(some) for count in range(7) for some in itertools.combinations(EXACTNESS_CLAIMS, count)]


@pytest.mark.parametrize("wrong", CLAIMED, ids=lambda some: "+".join(sorted(some)) or "none")
def test_every_claim_that_turns_a_check_off_is_named_and_keeps_it_from_use(wrong: set[str]) -> None:
    manifest: Any = Said(wrong)
    assert set(claims(manifest)) == wrong and all(claims(manifest).values())
    assert set(uncheckable(manifest)) == wrong - HARMLESS
    whole = LevelReport(tuple(LevelResult(level, "passed") for level in Level))
    assert set(unusable(manifest, whole)) == wrong - HARMLESS


@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("verdict", ["failed", "skipped", "absent"])
def test_a_step_that_is_due_has_to_have_passed(level: Level, verdict: Any) -> None:
    steps = [LevelResult(each, "passed") for each in Level if each != level]
    if verdict != "absent":
        steps.append(LevelResult(level, verdict, why="its reason"))
    reasons = unusable(Said(set()), LevelReport(tuple(steps)))  # type: ignore[arg-type]
    due = level in UNTRUSTED and level not in (Level.POLICY, Level.AGREEMENT)
    assert set(reasons) == ({f"V{int(level)}"} if due else set())
    if due and verdict == "skipped":
        assert reasons[f"V{int(level)}"] == "its reason"
    assert set(ALWAYS) <= set(UNTRUSTED) and set(accusation.PROVES) == PROVES
