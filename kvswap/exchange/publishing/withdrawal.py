"""Withdrawal of own artifacts: signed into the publisher status record, removed here, announced to peers."""

from __future__ import annotations

import asyncio
import contextlib

from kvswap.api.store import WithdrawResult
from kvswap.core.errors import NotAMember, NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.status_records import collect, one_at_a_time, sign_status_record, stands_by
from kvswap.store import ArtifactRow
from kvswap.trust import Statement
from kvswap.trust.groups import SEALED_DTYPE
from kvswap.trust.status_record import SignedStatusRecord


async def withdraw_rows(node: Node, mine: list[ArtifactRow], why: str) -> WithdrawResult:
    """Withdraw these artifacts, all published by this node, and return what was done.

    Raises `UsageError` for more than a status record can list.
    """
    own = node.identity.own
    signed = await asyncio.to_thread(_sign_without, node, mine, why)
    for row in mine:
        with contextlib.suppress(NotFound):  # removed by hand in the same moment
            await asyncio.to_thread(node.store.remove, row.id)
        node.events.add("withdrawn", artifact=row.id, publisher=own, reason=why)
    await collect(node)
    for row in mine:
        node.network.queue_announcement(row.id, row.document, here=False)  # who holds it looks it up here, and hears
    return WithdrawResult(withdrawn=[row.id for row in mine], why=why, sequence=signed.record.sequence)


@one_at_a_time
def _sign_without(node: Node, mine: list[ArtifactRow], why: str) -> SignedStatusRecord:
    own = node.identity.own
    withdrawn = node.trust.records.withdrawn_by(own) | {row.id: why for row in mine}
    if len(withdrawn) > LIMITS.status_record_withdrawals:
        raise UsageError(
            f"a publisher can have {LIMITS.status_record_withdrawals} withdrawn artifacts",
            hint="kvswap trust rotate  begins anew",
        )
    return sign_status_record(node, [name for name in stands_by(node, own) if name not in withdrawn], withdrawn)


def superseded(node: Node, source: str, document: str) -> list[Statement]:
    """Return own artifacts of the document that stood at `source` before this one.  Blocks."""
    own = node.identity.own
    out = []
    for row in node.store.mentioning(own, source.encode(), SEALED_DTYPE):
        envelope = node.store.envelope(row.id) if row.document != document else None
        with contextlib.suppress(NotAMember):  # of a group whose key is not here any more
            statement = node.read(envelope) if envelope else None
            known = statement.manifest.document if statement else None
            if statement and known and known.source == source and known.reference != document:
                out.append(statement)
    return out
