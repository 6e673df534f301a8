"""How a climb ended, and what of it is remembered: over every end, everything remembered before, and every publisher."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvswap.core.errors import IntegrityError, Untrusted
from kvswap.exchange.verification.outcomes import (
    conclude,
    dispute,
    is_own,
    reasons_against,
    refuse_withheld,
    verified_already,
)
from kvswap.store import Outcome, Records
from kvswap.trust.figures import CheckFigures
from kvswap.trust.levels import ALWAYS, PROOF_RULES, RULES, UNTRUSTED, Level, LevelReport, LevelResult
from tests.support import key, make_artifact

MADE = make_artifact(tokens=9)
ARTIFACT, PUBLISHER = str(MADE.statement.artifact), str(key().peer_id)
OTHER = "bafkr4i" + "a" * 52
NEVER_WHOLE = (Level.POLICY, Level.DIGESTS)  # done before, or beside, a climb

ENDS: dict[str, list[LevelResult]] = {  # by step, what is another than "passed, but V7 and V6 not done"
    "passed": [],
    "recomputed": [LevelResult(Level.RECOMPUTE, "passed")],
    "agreed with trusted": [LevelResult(Level.AGREEMENT, "passed", figures=CheckFigures(trusted=1))],
    "agreed with strangers": [LevelResult(Level.AGREEMENT, "passed", figures=CheckFigures(trusted=0))],
    "lacking": [LevelResult(Level.SAMPLES, "skipped", why="no noise")],
    "lacking, recomputed": [
        LevelResult(Level.SAMPLES, "skipped", why="no noise"),
        LevelResult(Level.RECOMPUTE, "passed"),
    ],
    "policy": [LevelResult(Level.POLICY, "failed", why="expired")],
    "disputed": [LevelResult(Level.AGREEMENT, "failed", why="differs", figures=CheckFigures(disputed_with=(OTHER,)))],
    "wrong": [LevelResult(Level.STRUCTURE, "failed", why="not finite")],
    "caught": [LevelResult(Level.SAMPLES, "failed", why="not the model's", proven=True)],
    "probe": [LevelResult(Level.PROBE, "failed", why="another continuation")],
}
BEFORE: list[tuple[str, int] | None] = [
    None, *itertools.product(("passed", "undecided", "disputed", "wrong"), (RULES, PROOF_RULES, PROOF_RULES - 1))
]  # fmt: skip


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path / "trust.sqlite3")
    yield made
    made.close()


def node_of(records: Records, *, trusted: bool = False, own: bool = False) -> Any:
    policy = SimpleNamespace(policy=SimpleNamespace(trusts=lambda peer: trusted and peer == PUBLISHER))
    trust = SimpleNamespace(records=records, policy=policy)
    return SimpleNamespace(trust=trust, identity=SimpleNamespace(own=str((key() if own else key(2)).peer_id)))


def ladder_of(changes: list[LevelResult]) -> LevelReport:
    steps = {level: LevelResult(level, "passed") for level in (*UNTRUSTED, Level.PROBE) if level != Level.AGREEMENT}
    return LevelReport(tuple((steps | {step.level: step for step in changes}).values()))


def put(records: Records, before: tuple[str, int] | None) -> None:
    if before is not None:
        records.put_outcome(Outcome(ARTIFACT, PUBLISHER, before[0], before[1], why="before"))  # type: ignore[arg-type]


def verdict(records: Records) -> str | None:
    held = records.outcome(ARTIFACT)
    return None if held is None else held.verdict if held.why != "before" else f"{held.verdict} as before"


def valid_before(before: tuple[str, int] | None) -> str | None:
    """What is judged again is what passed by fewer looks, and whatever older rules of proof came to."""
    if before is None or before[1] < (RULES if before[0] == "passed" else PROOF_RULES):
        return None
    return before[0]


def expected(end: str, before: tuple[str, int] | None) -> str | None:
    """What a whole climb for a stranger's artifact leaves, by the words of docs/adr/0023."""
    kept = f"{before[0]} as before" if before is not None else None
    valid = valid_before(before)
    if end == "policy":  # says nothing of the content
        return kept
    if end == "caught":  # the audit tells it
        return None
    if end in ("disputed", "wrong"):
        return end
    decided = "recomputed" in end or end == "agreed with trusted"
    if valid in ("disputed", "wrong") and not decided:
        return kept
    if end == "lacking":
        return "undecided" if valid in (None, "undecided") else kept
    return "passed"


@pytest.mark.parametrize("before", BEFORE, ids=str)
@pytest.mark.parametrize("end", ENDS)
def test_what_a_whole_climb_leaves(end: str, before: tuple[str, int] | None, records: Records) -> None:
    put(records, before)
    conclude(node_of(records), MADE.statement, UNTRUSTED, ladder_of(ENDS[end]))
    assert verdict(records) == expected(end, before)
    held = records.outcome(ARTIFACT)
    if held is not None and held.why != "before":
        assert held.rules == RULES and held.publisher == PUBLISHER
        assert held.others == ((OTHER,) if end == "disputed" else ())
        assert set(held.levels) == {int(s.level) for s in ladder_of(ENDS[end]).results if s.verdict == "passed"}
        assert bool(held.why) == (held.verdict != "passed")


@pytest.mark.parametrize("missing", [level for level in UNTRUSTED if level not in NEVER_WHOLE])
@pytest.mark.parametrize("end", ENDS)
def test_what_was_no_whole_climb_leaves_nothing(missing: Level, end: str, records: Records) -> None:
    levels = [level for level in Level if level != missing]
    conclude(node_of(records), MADE.statement, levels, ladder_of(ENDS[end]))
    assert verdict(records) is None


@pytest.mark.parametrize("without", NEVER_WHOLE)
def test_a_climb_is_whole_without_what_is_always_done(without: Level, records: Records) -> None:
    conclude(node_of(records), MADE.statement, [level for level in UNTRUSTED if level != without], ladder_of([]))
    assert verdict(records) == "passed"


@pytest.mark.parametrize("before", BEFORE, ids=str)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("levels", [UNTRUSTED, ALWAYS], ids=["whole", "a part"])
def test_of_a_trusted_publisher_only_a_recomputation_is_remembered(
    end: str, before: tuple[str, int] | None, levels: Any, records: Records
) -> None:
    put(records, before)
    conclude(node_of(records, trusted=True), MADE.statement, levels, ladder_of(ENDS[end]))
    lifted = "recomputed" in end and valid_before(before) is not None
    assert verdict(records) == (None if lifted or before is None else f"{before[0]} as before")


def test_a_recomputation_beside_a_failure_lifts_nothing(records: Records) -> None:
    put(records, ("disputed", RULES))
    both = [LevelResult(Level.RECOMPUTE, "passed"), LevelResult(Level.STRUCTURE, "failed", why="w")]
    conclude(node_of(records, trusted=True), MADE.statement, UNTRUSTED, ladder_of(both))
    assert verdict(records) == "disputed as before"


@pytest.mark.parametrize("before", BEFORE, ids=str)
@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_what_is_withheld_is_refused(
    before: tuple[str, int] | None, trusted: bool, own: bool, records: Records
) -> None:
    put(records, before)
    node = node_of(records, trusted=trusted, own=own)
    valid = valid_before(before)
    assert is_own(node, MADE.statement) is own
    assert verified_already(node, MADE.statement) is (trusted or valid == "passed")
    if valid == "wrong":
        with pytest.raises(IntegrityError) as wrong:
            refuse_withheld(node, MADE.statement)
        assert (
            wrong.value.details["publisher"] == PUBLISHER and ("publish the document again" in wrong.value.hint) is own
        )
    elif valid == "disputed" and not trusted:
        with pytest.raises(Untrusted):
            refuse_withheld(node, MADE.statement)
    else:
        refuse_withheld(node, MADE.statement)


def test_a_dispute_is_remembered_with_whom(records: Records) -> None:
    dispute(node_of(records), MADE.statement, ENDS["disputed"][0])
    held = records.outcome(ARTIFACT)
    assert held is not None and (held.verdict, held.others, held.rules) == ("disputed", (OTHER,), RULES)


@pytest.mark.parametrize("level", [Level.STRUCTURE, Level.TOKENS, Level.SAMPLES])
def test_a_whole_recomputation_stands_for_the_samples_and_for_nothing_else(level: Level) -> None:
    report = ladder_of([LevelResult(level, "skipped", why="w")])
    assert reasons_against(MADE.statement, report) == {f"V{int(level)}": "w"}
    whole = ladder_of([LevelResult(level, "skipped", why="w"), LevelResult(Level.RECOMPUTE, "passed")])
    assert reasons_against(MADE.statement, whole) == ({} if level == Level.SAMPLES else {f"V{int(level)}": "w"})
