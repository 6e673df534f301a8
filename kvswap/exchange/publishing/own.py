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
from kvswap.trust.ladder import RULES, Ladder, Level

_FAULTS = (Level.STRUCTURE, Level.TOKENS, Level.SAMPLES, Level.RECOMPUTE)
_AGAIN = (Level.DIGESTS, Level.STRUCTURE, Level.TOKENS, Level.RECOMPUTE)
Climb = Callable[[Sequence[Level]], Awaitable[Ladder]]


@dataclass(frozen=True, slots=True)
class _Look:
    """The result of one verification; `why` is empty where nothing is wrong."""

    ladder: Ladder
    why: str = ""
    error: IntegrityError | None = None

    @property
    def right(self) -> bool:
        return not self.why and self.ladder.passed(Level.RECOMPUTE)

    def result(self) -> Ladder:
        if self.error is not None:
            raise self.error
        return self.ladder


async def look_at_own(node: Node, statement: Statement, climb: Climb, levels: Sequence[Level]) -> Ladder:
    """Verify an own artifact by these levels and act on what is found.  Raises what `climb` does.

    What is wrong is neither offered nor served from then on; everything is computed again, and where that finds it
    wrong as well, as when a former look did, it is withdrawn.  Where it is right after all it is listed again.
    """
    artifact = str(statement.artifact)
    before = current(await asyncio.to_thread(node.trust.records.outcome, artifact))
    found = await _look(node, statement, climb, levels)
    if not found.why:
        if found.right and before is not None:
            await asyncio.to_thread(node.trust.records.forget_outcome, artifact)
        return found.result()
    publisher = statement.manifest.publisher
    wrong = Outcome(artifact, publisher, "wrong", RULES, why=found.why)
    await asyncio.to_thread(node.trust.records.put_outcome, wrong)
    node.events.add("found_wrong", artifact=artifact, reason=found.why)
    if before is None or before.verdict != "wrong":
        again = await _look(node, statement, climb, _AGAIN)
        if again.right:
            await asyncio.to_thread(node.trust.records.forget_outcome, artifact)
        if not again.why:
            return found.result()
    row = await asyncio.to_thread(node.store.get_artifact, artifact)
    if row is not None:
        await withdraw_rows(node, [row], f"its own publisher found it wrong: {found.why}"[:256])
    return found.result()


async def _look(node: Node, statement: Statement, climb: Climb, levels: Sequence[Level]) -> _Look:
    try:
        ladder = await climb(levels)
    except IntegrityError as error:
        files = {statement.manifest.files[i].id for i in layout.needed_files(statement.manifest)}
        if await asyncio.to_thread(node.store.missing, files):
            raise  # a chunk was damaged here and is set aside: what was signed is not to blame
        return _Look(Ladder(()), error.message, error)
    step = next((s for s in ladder.steps if s.verdict == "failed" and s.level in _FAULTS), None)
    return _Look(ladder, f"V{int(step.level)}: {step.why}" if step is not None else "")
