"""Withdrawal of what this node published."""

from __future__ import annotations

import asyncio

from kvswap.api.store import WithdrawResult
from kvswap.core.errors import NotFound, UsageError
from kvswap.core.ids import Cid
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.withdrawal import withdraw_rows


async def withdraw(node: Node, reference: str | Cid, why: str) -> WithdrawResult:
    """Withdraw own artifacts: not used, offered or served any more, here and by whoever hears of it.

    Raises `NotFound`, or `UsageError` for somebody else's.
    """
    own = node.identity.own
    rows = await asyncio.to_thread(node.lookup, reference)
    if not rows:
        raise NotFound(f"{reference} is not in the store", hint="kvswap ls")
    mine = [row for row in rows if row.publisher == own]
    if not mine:
        raise UsageError(f"{reference} was published by {rows[0].publisher}: only it can withdraw that")
    return await withdraw_rows(node, mine, why)
