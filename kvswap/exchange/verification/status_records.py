"""Publisher status records: our own is signed and given out, those of others are kept and obeyed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar

from kvswap.core.errors import NotFound, Untrusted
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import Node
from kvswap.exchange.verification.received import kept_for_later, verified_statements
from kvswap.store.unwritten import ReceivedStatusRecord
from kvswap.trust import Statement
from kvswap.trust.envelopes import reason
from kvswap.trust.keys import Key
from kvswap.trust.status_record import (
    KIND,
    SignedStatusRecord,
    StatusRecord,
    accept,
    artifacts_root,
    make_status_record,
    read_status_record,
)

P = ParamSpec("P")
T = TypeVar("T")
_RENEW_SECONDS = LIMITS.status_record_seconds // 2


def one_at_a_time(function: Callable[Concatenate[Node, P], T]) -> Callable[Concatenate[Node, P], T]:
    """Let one thread of a node at a time change or sign status records.

    A function that holds the lock may call another.
    """

    @functools.wraps(function)
    def locked(node: Node, /, *arguments: P.args, **named: P.kwargs) -> T:
        with node.trust.status_lock:
            return function(node, *arguments, **named)

    return locked


@one_at_a_time
def own_status_record(node: Node) -> SignedStatusRecord | None:
    """Return the status record of what this node published and stands by; None if it never published anything.

    It is signed again when that changed, or half its life is over.  Blocks; a sequence is signed once, whoever asks.
    """
    own = node.identity.own
    now = int(time.time())
    stamp, signed = node.identity.status_record
    if stamp == node.permission.stamp and signed is not None and _fresh(signed.record, now):
        return signed
    stamp = node.permission.stamp  # of before what is read now
    withdrawn = node.trust.records.withdrawn_by(own)
    holding = stands_by(node, own)
    known = _newest(node, own)
    if known is None and not holding:
        return None
    if known is None or not _still_says(known.record, holding, withdrawn, now):
        known = sign_status_record(node, holding, withdrawn)
        stamp = node.permission.stamp  # keeping it is a change as well
    node.identity.status_record = (stamp, known)
    return known


def stands_by(node: Node, publisher: str) -> list[str]:
    """List the artifacts that a publisher whose key is here stands by: all that hold, but the withheld ones.

    No row is read of all the others: there may be tens of thousands.
    """
    withheld, banned = node.permission.withheld()
    if publisher in banned:
        return []
    left_out = withheld | node.trust.records.withdrawn_by(publisher).keys()
    return [name for name in node.store.ids_of(publisher, time.time()) if name not in left_out]


def _fresh(record: StatusRecord, now: int) -> bool:
    """Return True unless a status record must be signed again for its age.

    One from the future must be as well: readers refuse it.
    """
    return record.issued - LIMITS.clock_skew_seconds <= now < record.issued + _RENEW_SECONDS


def _still_says(record: StatusRecord, holding: list[str], withdrawn: dict[str, str], now: int) -> bool:
    return (
        record.catalogue == artifacts_root(holding)
        and record.reasons == {a: reason(why) for a, why in withdrawn.items()}
        and _fresh(record, now)
    )


def sign_status_record(
    node: Node, holding: list[str], withdrawn: dict[str, str], next_key: Key | None = None
) -> SignedStatusRecord:
    """Sign the next status record of this node's publisher key, and keep it in database and file.

    `holding`: the artifacts it stands by; `withdrawn`: reasons by artifact; `next_key`: the key that succeeds this one.
    """
    made = _signed_by(node, node.identity.publisher, holding, withdrawn, next_key)
    node.identity.status_record = ((), None)  # read again at the next look
    return made


def _signed_by(
    node: Node, key: Key, holding: list[str], withdrawn: dict[str, str], next_key: Key | None
) -> SignedStatusRecord:
    publisher = str(key.peer_id)
    known = node.trust.records.status_record(publisher)
    sequence = known[0] + 1 if known else 1
    made = make_status_record(key, sequence, int(time.time()), holding, withdrawn, next_key)
    node.trust.records.put_status_record(
        publisher, ReceivedStatusRecord(sequence, made.envelope, made.record.reasons, held=withdrawn.keys(), kept=True)
    )
    node.trust.status_files.put(publisher, made.envelope)
    return made


def _newest(node: Node, publisher: str) -> SignedStatusRecord | None:
    row = node.trust.records.status_record(publisher)
    return read_status_record(row[1]) if row else None


@one_at_a_time
def status_records_of(node: Node, publishers: Iterable[str]) -> list[bytes]:
    """Return the status records of these publishers that are known and have not expired, for a reader.

    Those of this node's retired keys come with them.  Blocks.
    """
    now = time.time()
    out: list[bytes] = []
    for publisher in dict.fromkeys([*publishers, *node.identity.retired]):
        if len(out) == LIMITS.status_records_sent:
            break
        signed = own_status_record(node) if publisher == node.identity.own else _newest(node, publisher)
        if signed is not None and publisher in node.identity.retired and not _fresh(signed.record, int(now)):
            signed = _still_retired(node, signed.record)
        if signed is not None and signed.record.expires > now:
            out.append(signed.envelope)
    return out


@one_at_a_time
def receive_status_records(node: Node, envelopes: Iterable[bytes], peer: str) -> None:
    """Keep the status records that are newer than those we have, and remove what they withdraw.  Blocks.

    A peer that passes on a forged one is not asked for a while.
    """
    for signed in verified_statements(node, peer, KIND, envelopes, LIMITS.status_records_sent, read_status_record):
        record = signed.record
        if record.publisher == node.identity.own:
            continue
        try:
            known = _newest(node, record.publisher)
            newer = accept(record, known.record if known else None, int(time.time()))
            if newer or (known is not None and record == known.record):
                node.trust.notify_status_record(peer, record.publisher, newer)
            if not newer:
                continue
        except Untrusted as error:
            node.events.add("head_refused", publisher=record.publisher, peer=peer, reason=error.message)
            continue
        reasons = record.reasons
        here = set(node.store.ids_of(record.publisher)) if reasons else set()
        node.trust.records.receive_status_record(
            record.publisher, ReceivedStatusRecord(record.sequence, signed.envelope, reasons, sender=peer, held=here)
        )
        if node.trust.policy.policy.trusts(record.publisher):
            node.trust.status_files.put(record.publisher, signed.envelope)
        for artifact in sorted(here & reasons.keys()):
            with contextlib.suppress(NotFound):  # collected meanwhile
                node.store.remove(artifact)
            node.events.add("withdrawn", artifact=artifact, publisher=record.publisher, reason=reasons[artifact])
        if here & reasons.keys():
            node.background.spawn_from(lambda: collect(node))
        with kept_for_later(node):
            follow(node, record)


async def collect(node: Node) -> None:
    """Delete the chunks that belong to no artifact any more."""
    await asyncio.to_thread(node.store.collect)


def follow(node: Node, record: StatusRecord) -> None:
    """Trust the successor that a trusted publisher names and that has signed as well, unless the user removed it.

    Where the trust list cannot be written, that is done later (`pending_writes.write_pending`).
    """
    policy, then = node.trust.policy.policy, record.successor
    if then is None or record.publisher not in policy.publishers or not policy.trusts(record.publisher):
        return
    if policy.ban_of(then.peer) is None and not policy.trusts(then.peer) and then.peer not in policy.removed:
        node.trust.to_follow[record.publisher] = record
        added = node.trust.policy.follow(then.peer, policy.publishers[record.publisher].label, record.publisher)
        node.trust.to_follow.pop(record.publisher, None)
        if not added:
            return
        node.events.add("trusted", publisher=then.peer, how=f"the successor of {record.publisher}")


def _still_retired(node: Node, record: StatusRecord) -> SignedStatusRecord:
    """Sign the last status record of a retired key again: it names the same successor."""
    then = record.successor
    last = next(
        (key for peer, key in node.identity.retired.items() if then and peer == then.peer), node.identity.publisher
    )
    return _signed_by(
        node, node.identity.retired[record.publisher], stands_by(node, record.publisher), record.reasons, last
    )


def require_current(node: Node, statement: Statement) -> None:
    """Raise `Untrusted` for an artifact that its publisher has withdrawn."""
    artifact, publisher = str(statement.artifact), statement.manifest.publisher
    why = node.trust.records.withdrawn(artifact, publisher)
    if why is not None:
        raise Untrusted(
            f"artifact {artifact} was withdrawn by its publisher: {why}", cause="it is not to be used any more"
        )


def freshness(node: Node, publisher: str) -> str:
    """Describe, in human-readable form, how old the news of a publisher's withdrawals is; empty when it is current."""
    known = _newest(node, publisher)
    if known is None:
        return "no status record of the publisher is known: it may have been withdrawn"
    late = int(time.time()) - known.record.expires
    return f"the publisher's last status record expired {late // 3600} hours ago" if late > 0 else ""
