"""Withdrawal of what this node published."""

from __future__ import annotations

import asyncio

from msgspec import structs

from kvswap.api.store import WithdrawResult
from kvswap.core.errors import NotFound, UsageError
from kvswap.core.ids import Cid
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.take_back import entries_of, take_back
from kvswap.exchange.publishing.withdrawal import withdraw_rows


async def withdraw(node: Node, reference: str | Cid, why: str) -> WithdrawResult:
    """Withdraw own artifacts: not used, offered or served any more, here and by whoever hears of it.

    They are taken from the origins to which this node pushed them, which get the new status record.
    Raises `NotFound`, or `UsageError` for somebody else's.
    """
    own = node.identity.own
    rows = await asyncio.to_thread(node.lookup, reference)
    if not rows:
        raise NotFound(f"{reference} is not in the store", hint="kvswap ls")
    mine = [row for row in rows if row.publisher == own]
    if not mine:
        raise UsageError(f"{reference} was published by {rows[0].publisher}: only it can withdraw that")
    entries = await asyncio.to_thread(entries_of, node, mine)  # while their manifests are here
    done = await withdraw_rows(node, mine, why)
    taken = await take_back(node, entries)
    return structs.replace(done, origins=taken.origins, still_at=taken.still_at)
