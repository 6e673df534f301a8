"""Artifacts of this node that it finds wrong: unlisted at once, and withdrawn when a second computation agrees."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvswap.artifact import layout
from kvswap.core.errors import IntegrityError
from kvswap.exchange.node.node import Node
from kvswap.exchange.node.standing import current
from kvswap.exchange.publishing.withdrawal import withdraw_rows
from kvswap.store import Outcome
from kvswap.trust import Statement
from kvswap.trust.levels import RULES, Level, LevelReport

_FAULTS = (Level.STRUCTURE, Level.TOKENS, Level.SAMPLES, Level.RECOMPUTE)
_AGAIN = (Level.DIGESTS, Level.STRUCTURE, Level.TOKENS, Level.RECOMPUTE)
RunChecks = Callable[[Sequence[Level]], Awaitable[LevelReport]]


@dataclass(frozen=True, slots=True)
class _Look:
    """The result of one verification; `why` is empty where nothing is wrong."""

    report: LevelReport
    why: str = ""
    error: IntegrityError | None = None

    @property
    def right(self) -> bool:
        return not self.why and self.report.passed(Level.RECOMPUTE)

    def result(self) -> LevelReport:
        if self.error is not None:
            raise self.error
        return self.report


async def verify_own(node: Node, statement: Statement, run_checks: RunChecks, levels: Sequence[Level]) -> LevelReport:
    """Verify an own artifact by these levels and act on what is found.  Raises what `run_checks` does.

    What is wrong is neither offered nor served from then on; everything is computed again, and where that finds it
    wrong as well, as when a former look did, it is withdrawn.  Where it is right after all it is listed again.
    """
    artifact = str(statement.artifact)
    before = current(await asyncio.to_thread(node.trust.records.outcome, artifact))
    found = await _look(node, statement, run_checks, levels)
    if not found.why:
        if found.right and before is not None:
            await asyncio.to_thread(node.trust.records.forget_outcome, artifact)
        return found.result()
    publisher = statement.manifest.publisher
    wrong = Outcome(artifact, publisher, "wrong", RULES, why=found.why)
    await asyncio.to_thread(node.trust.records.put_outcome, wrong)
    node.events.add("found_wrong", artifact=artifact, reason=found.why)
    if before is None or before.verdict != "wrong":
        again = await _look(node, statement, run_checks, _AGAIN)
        if again.right:
            await asyncio.to_thread(node.trust.records.forget_outcome, artifact)
        if not again.why:
            return found.result()
    row = await asyncio.to_thread(node.store.get_artifact, artifact)
    if row is not None:
        await withdraw_rows(node, [row], f"its own publisher found it wrong: {found.why}"[:256])
    return found.result()


async def _look(node: Node, statement: Statement, run_checks: RunChecks, levels: Sequence[Level]) -> _Look:
    try:
        report = await run_checks(levels)
    except IntegrityError as error:
        files = set(statement.manifest.ids_of(layout.needed_files(statement.manifest)))
        if await asyncio.to_thread(node.store.missing, files):
            raise  # a chunk was damaged here and is set aside: what was signed is not to blame
        return _Look(LevelReport(()), error.message, error)
    result = next((s for s in report.results if s.verdict == "failed" and s.level in _FAULTS), None)
    return _Look(report, f"V{int(result.level)}: {result.why}" if result is not None else "")
