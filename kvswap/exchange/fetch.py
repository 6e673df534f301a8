"""Fetching: reference -> usable artifact -> plan -> chunks from several peers into the store.

What was fetched stays, whatever happens: the next attempt resumes.  The transfer itself is in
`transfer`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from msgspec import structs

from kvswap.api.caches import FetchResult
from kvswap.api.plans import summary_of
from kvswap.api.verification import Verification
from kvswap.artifact.layout import needed_files
from kvswap.core.ids import Cid
from kvswap.cost import Plan
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.decision import judge
from kvswap.exchange.planning.measuring import measure_in_background
from kvswap.exchange.request import STRICT, Progress, Terms, silent
from kvswap.exchange.transfer.choosing import choose
from kvswap.exchange.transfer.completion import note_fetched
from kvswap.exchange.transfer.download import download
from kvswap.exchange.verification.claims import report_claims
from kvswap.exchange.verification.coverage import verification
from kvswap.exchange.verification.use import require_text
from kvswap.exchange.verify import verify_untrusted
from kvswap.trust import Statement


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete artifact in the store, and how it got there."""

    statement: Statement
    plan: Plan
    wire_bytes: int  # fetched now, not what was here before
    peers: tuple[str, ...]
    seconds: float
    verification: Verification

    def result(self) -> FetchResult:
        """Return the result of `kvswap fetch`."""
        chosen, manifest = summary_of(self.plan), self.statement.manifest
        rounded = structs.replace(chosen, seconds=round(chosen.seconds, 4), dollars=round(chosen.dollars, 8))
        return FetchResult(
            artifact=str(self.statement.artifact),
            plan=rounded,
            tokens=manifest.prefix.tokens,
            codec=manifest.codecs[0],
            lossless=manifest.lossless,
            wire_bytes=self.wire_bytes,
            raw_bytes=manifest.raw_bytes,
            peers=list(self.peers),
            seconds=round(self.seconds, 4),
            verified=True,
            verification=self.verification,
        )


async def fetch(
    node: Node,
    reference: str | Cid,
    terms: Terms = STRICT,
    progress: Progress = silent,
    *,
    text: str | None = None,
) -> Fetched:
    """Make an artifact complete in the store.  Raises `PlanSaysPrefill` when that is not worth it.

    An untrusted publisher's is verified before it counts (see `verify.verify_untrusted`); `text` is the document, where
    it is at hand.
    """
    began = time.perf_counter()
    resolved, planned = await choose(node, reference, terms, progress)
    statement, chosen = resolved.statement, planned.plan
    require_text(statement, text)
    if resolved.local:
        checked = await _verified(node, statement, terms, text, progress)
        return Fetched(statement, chosen, 0, (), time.perf_counter() - began, checked)
    rest = None if terms.force else await judge(node, statement.manifest, terms.objective)
    files = await asyncio.to_thread(needed_files, statement.manifest)
    transfer = await download(node, statement, files, planned.peers, progress, rest, planned.most_per_gb)
    seconds = time.perf_counter() - began
    transfer.learn_start(seconds)
    if resolved.choice is not None:
        measure_in_background(node, resolved.choice, statement.manifest.prefix.block_tokens)  # for the next plan
    checked = await _verified(node, statement, terms, text, progress)
    note_fetched(node, statement, transfer, seconds)
    seconds = time.perf_counter() - began
    return Fetched(statement, chosen, transfer.received, tuple(transfer.served_bytes), seconds, checked)


async def _verified(
    node: Node, statement: Statement, terms: Terms, text: str | None, progress: Progress
) -> Verification:
    report = await verify_untrusted(node, statement, text, terms.samples, progress)
    await report_claims(node, statement, progress)
    return await asyncio.to_thread(verification, node, statement, report)
