"""The bounded tables of a node, listed for `kvswap status`."""

from __future__ import annotations

from kvswap.core.bounded import Tables
from kvswap.cost import Calibration
from kvswap.exchange.node.events import EventLog
from kvswap.exchange.node.network import Network
from kvswap.exchange.node.peers import Peers
from kvswap.exchange.node.permission import Permission
from kvswap.exchange.node.trust import Trust


def tables_of(
    network: Network, peers: Peers, trust: Trust, permission: Permission, events: EventLog, calibration: Calibration
) -> Tables:
    """List the tables that untrusted peers can fill: each is bounded, with a share for each sender."""
    tables = Tables()
    tables.add(
        network.address_book.referrals,
        network.address_book.pauses,
        network.address_book.shown,
        peers.neighbours.throttled,
        peers.neighbours.no_bulk,
        peers.neighbours.prices,
        network.prefix_indexes.table,
        network.prefix_indexes.false_indexes,
        network.prefix_indexes.taken_back,
        peers.bulk_tickets.table,
        network.swarms.table,
        permission.table,
        events.table,
        peers.ledger.table,
        network.providing.table,
        trust.records.status_records,
        trust.records.unwritten.status_records,
        trust.records.unwritten.audits,
        calibration.links,
    )
    tables.add_all(network.transport.fillings)
    return tables
