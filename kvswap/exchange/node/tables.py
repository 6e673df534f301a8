"""The bounded tables of a node, listed for `kvswap status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvswap.core.bounded import Tables

if TYPE_CHECKING:
    from kvswap.exchange.node.node import Node


def tables_of(node: Node) -> Tables:
    """List what strangers' words fill: each bounded, with a share for each teller."""
    tables = Tables()
    tables.add(
        node.hearsay.referrals,
        node.hearsay.pauses,
        node.hearsay.shown,
        node.neighbours.shunned,
        node.neighbours.no_bulk,
        node.neighbours.prices,
        node.catalogues.table,
        node.catalogues.in_vain,
        node.catalogues.taken_back,
        node.grants.table,
        node.swarms.table,
        node.chunk_list.table,
        node.tokens.table,
        node.permission.table,
        node.spoken.table,
        node.spoken.resting,
        node.spoken.last,
        node.events.table,
        node.ledger.table,
        node.providing.table,
        node.records.heads,
        node.records.unwritten.heads,
        node.records.unwritten.audits,
        node.calibration.links,
    )
    if node.transport is not None:
        tables.add_all(node.transport.fillings)
    return tables
