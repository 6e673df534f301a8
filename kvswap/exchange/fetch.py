"""Fetching: reference -> usable artifact -> plan -> chunks from several peers into the store.

What was fetched stays, whatever happens: the next attempt resumes.  The transfer itself is in
`transfer`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from kvswap.artifact.layout import needed_files
from kvswap.core.ids import Cid
from kvswap.cost import Plan
from kvswap.exchange.discovery.resolve import Resolved, own_model, resolve, use
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.decision import Planned, best, judge, measure_beside, not_worth_it
from kvswap.exchange.request import STRICT, Progress, Terms, silent
from kvswap.exchange.transfer.bring import bring
from kvswap.exchange.transfer.downloader import Transfer
from kvswap.exchange.transfer.sources import approach
from kvswap.exchange.verification.claims import require_text, say_claims
from kvswap.exchange.verify import settle, verification
from kvswap.trust import Statement


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete artifact in the store, and how it got there."""

    statement: Statement
    plan: Plan
    wire_bytes: int  # fetched now, not what was here before
    peers: tuple[str, ...]
    seconds: float
    verification: dict[str, Any]  # which steps of the ladder it passed, and what nobody looked at

    def to_json(self) -> dict[str, Any]:
        """The JSON contract of `kvswap fetch`."""
        chosen = self.plan
        return {
            "artifact": str(self.statement.artifact),
            "plan": {
                "action": chosen.action,
                "seconds": round(chosen.seconds, 4),
                "dollars": round(chosen.dollars, 8),
                "reason": chosen.reason,
            },
            "tokens": self.statement.manifest.prefix.tokens,
            "codec": self.statement.manifest.codecs[0],
            "exact": self.statement.manifest.exact,
            "wire_bytes": self.wire_bytes,
            "raw_bytes": self.statement.manifest.raw_bytes,
            "from": list(self.peers),
            "seconds": round(self.seconds, 4),
            "verified": True,
            "verification": self.verification,
        }


async def fetch(
    node: Node,
    reference: str | Cid,
    terms: Terms = STRICT,
    progress: Progress = silent,
    *,
    text: str | None = None,
) -> Fetched:
    """Make an artifact complete in the store.  Raises `PlanSaysPrefill` when that is not worth it.

    A stranger's is verified before it counts (see `verify.settle`); `text` is the document, where it is at hand.
    """
    began = time.perf_counter()
    resolved, planned = await choose(node, reference, terms, progress)
    statement, chosen = resolved.statement, planned.plan
    require_text(statement, text)
    if resolved.local:
        said = await _verified(node, statement, terms, text, progress)
        return Fetched(statement, chosen, 0, (), time.perf_counter() - began, said)
    rest = None if terms.force else await judge(node, statement.manifest, terms.objective)
    files = needed_files(statement.manifest)
    transfer = await bring(node, statement, files, planned.peers, progress, rest, planned.most_per_gb)
    seconds = time.perf_counter() - began
    transfer.learn_start(seconds)
    if (choice := await own_model(node)) is not None:
        measure_beside(node, choice, statement.manifest.prefix.block_tokens)  # for the next plan
    said = await _verified(node, statement, terms, text, progress)
    note_fetched(node, statement, transfer, seconds)
    seconds = time.perf_counter() - began
    return Fetched(statement, chosen, transfer.received, tuple(transfer.served_bytes), seconds, said)


async def _verified(
    node: Node, statement: Statement, terms: Terms, text: str | None, progress: Progress
) -> dict[str, Any]:
    ladder = await settle(node, statement, text, terms.samples, progress)
    await say_claims(node, statement, progress)
    return await asyncio.to_thread(verification, node, statement, ladder)


async def choose(
    node: Node, reference: str | Cid, terms: Terms, progress: Progress, *, hybrid: bool = False
) -> tuple[Resolved, Planned]:
    """The artifact to have.  Raises `PlanSaysPrefill` when that is not worth it, and what `resolve` does."""
    usable = await resolve(node, reference, terms)
    for found in usable:
        approach(node, found.peers, str(found.statement.artifact))
    resolved, planned = await best(node, usable, terms.objective, hybrid=hybrid)
    statement, chosen = resolved.statement, planned.plan
    await progress({"event": "found", "artifact": str(statement.artifact), "peers": list(resolved.peers)})
    await progress({"event": "plan", **chosen.to_json()})
    if resolved.local:
        await asyncio.to_thread(node.store.touch, str(statement.artifact))
    elif chosen.action not in ("fetch", "hybrid") and not terms.force:
        node.counters.plans_prefill += 1
        node.events.add("declined", artifact=str(statement.artifact), reason=chosen.reason)
        raise not_worth_it(str(statement.artifact), chosen)
    await use(node, statement, terms)
    return resolved, planned


def note_fetched(node: Node, statement: Statement, transfer: Transfer, seconds: float) -> None:
    """An artifact is complete in the store: tell of it."""
    node.counters.fetched += 1
    node.events.add(
        "fetched",
        artifact=str(statement.artifact),
        bytes=transfer.received,
        peers=list(transfer.served_bytes),
        seconds=round(seconds, 3),
    )
    node.tell(str(statement.artifact), statement.reference)
