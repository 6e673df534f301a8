"""The retry of what peers told and this machine could not write: done as soon as the disk takes it."""

from __future__ import annotations

from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.audits import take
from kvswap.exchange.verification.received import kept_for_later
from kvswap.exchange.verification.status_records import follow
from kvswap.trust.audit import read_audit


def write_pending(node: Node) -> None:
    """Write what waits for the disk: status records, audits, successors of publishers.

    Blocks; call it now and then.
    """
    node.trust.records.maintain()
    for row in node.trust.records.unwritten.all_audits():
        with kept_for_later(node):
            if not node.trust.policy.policy.trusts(row.auditor):
                node.trust.records.unwritten.drop_audit(row.id)  # not any more
                continue
            take(node, read_audit(row.envelope), row.document)
    for record in list(node.trust.to_follow.values()):
        with kept_for_later(node), node.trust.status_lock:
            node.trust.to_follow.pop(record.publisher, None)  # it is there again where it cannot be written yet
            follow(node, record)
    if not node.trust.records.unwritten and not node.trust.to_follow:
        node.problems.clear_one("heard")
