"""An own artifact that begins as a document does that is about to be published: its blocks need not be computed."""

from __future__ import annotations

import asyncio

from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.signing import reusable
from kvswap.trust import Identifiers, Statement
from kvswap.worker.messages import PublishJob, TokenizeJob


async def own_prefix(node: Node, choice: ModelChoice, job: PublishJob, identifiers: Identifiers) -> Statement | None:
    """Return what this node published for the same readers that shares the most whole blocks; None without any.

    Only an artifact that is exact, and still stood by, is taken.
    """
    if not await asyncio.to_thread(node.store.count):
        return None
    made = await node.model.run(choice, TokenizeJob(text=job.text, block_tokens=job.block_tokens))
    return await asyncio.to_thread(_longest, node, choice, identifiers, made.chain)


def _longest(node: Node, choice: ModelChoice, identifiers: Identifiers, chain: list[bytes]) -> Statement | None:
    wanted = identifiers.model(choice.identity.digest, choice.dtype)
    for row, _ in node.store.longest_prefix(identifiers.chain(chain)):
        statement = reusable(node, row) if (row.model, row.dtype) == wanted else None
        if statement is not None and statement.manifest.lossless and statement.manifest.numerics.claim == "bitwise":
            return statement
    return None
