"""Rotation of the publisher key."""

from __future__ import annotations

from kvswap.api.trust import RotateResult
from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.status_records import one_at_a_time, own_status_record, sign_status_record, stands_by
from kvswap.trust.keys import Key, replace


@one_at_a_time
def rotate(node: Node) -> RotateResult:
    """Replace the publisher key by a new one: the old one names it, both sign, and who trusts the old one follows.

    The old key is kept, to sign that again for as long as somebody may ask.  Blocks.
    """
    old, new = node.identity.publisher, Key.generate()
    own_status_record(node)
    own = str(old.peer_id)
    signed = sign_status_record(node, stands_by(node, own), node.trust.records.withdrawn_by(own), new)
    replace(node.identity.publisher_file, new, node.identity.publisher_file.parent / "retired")
    node.identity.retired[own] = old
    node.identity.publisher = new
    node.trust.policy.succeed(str(new.peer_id))
    node.identity.status_record = ((), None)
    node.events.add("rotated", old=own, new=str(new.peer_id))
    return RotateResult(old=own, new=str(new.peer_id), sequence=signed.record.sequence)
