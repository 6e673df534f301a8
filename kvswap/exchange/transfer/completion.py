"""What follows when an artifact that was fetched is complete in the store: it is counted, logged and announced."""

from __future__ import annotations

from kvswap.exchange.node.node import Node
from kvswap.exchange.transfer.downloader import Transfer
from kvswap.trust import Statement


def note_fetched(node: Node, statement: Statement, transfer: Transfer, seconds: float) -> None:
    """Count, log and announce an artifact that is now complete in the store; `seconds` is what the fetch took."""
    node.counters.fetched += 1
    node.events.add(
        "fetched",
        artifact=str(statement.artifact),
        bytes=transfer.received,
        peers=list(transfer.served_bytes),
        seconds=round(seconds, 3),
    )
    node.network.queue_announcement(str(statement.artifact), statement.reference)
