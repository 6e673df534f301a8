"""The choice of the artifact to have, and whether it is worth fetching."""

from __future__ import annotations

import asyncio

from kvswap.api.events import FoundEvent, plan_event
from kvswap.core.ids import Cid
from kvswap.exchange.discovery.resolve import Resolved, resolve
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.decision import Planned, best, not_worth_it
from kvswap.exchange.request import Progress, Terms
from kvswap.exchange.transfer.sources import preconnect
from kvswap.exchange.verification.use import use


async def choose(
    node: Node, reference: str | Cid, terms: Terms, progress: Progress, *, hybrid: bool = False
) -> tuple[Resolved, Planned]:
    """Choose the artifact to have for a reference, and plan how.

    Raises `PlanSaysPrefill` when fetching is not worth it, and what `resolve` does.
    """
    usable = await resolve(node, reference, terms)
    for found in usable:
        preconnect(node, found.peers, str(found.statement.artifact))
    resolved, planned = await best(node, usable, terms.objective, hybrid=hybrid)
    statement, chosen = resolved.statement, planned.plan
    await progress(FoundEvent(artifact=str(statement.artifact), peers=list(resolved.peers)))
    await progress(plan_event(chosen))
    if resolved.local:
        await asyncio.to_thread(node.store.touch, str(statement.artifact))
    elif chosen.action not in ("fetch", "hybrid") and not terms.force:
        node.counters.plans_prefill += 1
        node.events.add("declined", artifact=str(statement.artifact), reason=chosen.reason)
        raise not_worth_it(str(statement.artifact), chosen)
    await use(node, statement, terms)
    return resolved, planned
