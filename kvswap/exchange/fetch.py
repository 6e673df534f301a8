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
from kvswap.exchange.node import Node
from kvswap.exchange.plan import best, judge, not_worth_it
from kvswap.exchange.request import STRICT, Progress, Terms, silent
from kvswap.exchange.resolve import resolve
from kvswap.exchange.transfer.bring import bring
from kvswap.trust import Statement


@dataclass(frozen=True, slots=True)
class Fetched:
    """A complete artifact in the store, and how it got there."""

    statement: Statement
    plan: Plan
    wire_bytes: int  # fetched now, not what was here before
    peers: tuple[str, ...]
    seconds: float

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
        }


async def fetch(
    node: Node,
    reference: str | Cid,
    terms: Terms = STRICT,
    progress: Progress = silent,
) -> Fetched:
    """Make an artifact complete in the store.  Raises `PlanSaysPrefill` when that is not worth it."""
    began = time.perf_counter()
    resolved, chosen = await best(node, await resolve(node, reference, terms), terms.objective)
    statement = resolved.statement
    await progress({"event": "found", "artifact": str(statement.artifact), "peers": list(resolved.peers)})
    await progress({"event": "plan", **chosen.to_json()})
    if resolved.local:
        await asyncio.to_thread(node.store.touch, str(statement.artifact))
        return Fetched(statement, chosen, 0, (), time.perf_counter() - began)
    if chosen.action != "fetch" and not terms.force:
        node.counters.plans_prefill += 1
        node.events.add("declined", artifact=str(statement.artifact), reason=chosen.reason)
        raise not_worth_it(str(statement.artifact), chosen)
    rest = None if terms.force else await judge(node, statement.manifest, terms.objective)
    transfer = await bring(node, statement, needed_files(statement.manifest), resolved.peers, progress, rest)
    wire_bytes, peers = transfer.received, tuple(transfer.served_bytes)
    seconds = time.perf_counter() - began
    node.counters.fetched += 1
    node.events.add(
        "fetched", artifact=str(statement.artifact), bytes=wire_bytes, peers=list(peers), seconds=round(seconds, 3)
    )
    document = statement.manifest.document
    node.spawn(node.announce(str(statement.artifact), document.reference if document else None))
    return Fetched(statement, chosen, wire_bytes, peers, seconds)
