"""Publisher status records ("heads"): our own is signed and given out, those of others are kept and obeyed."""

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
from kvswap.exchange.verification.hearing import heard, told
from kvswap.store.unwritten import ToldHead
from kvswap.trust import Statement
from kvswap.trust.envelopes import reason
from kvswap.trust.head import KIND, Head, SignedHead, accept, catalogue_root, make_head, read_head
from kvswap.trust.keys import Key

P = ParamSpec("P")
T = TypeVar("T")
_RENEW_SECONDS = LIMITS.head_seconds // 2


def one_at_a_time(function: Callable[Concatenate[Node, P], T]) -> Callable[Concatenate[Node, P], T]:
    """Let one thread of a node at a time change or sign status records.

    A function that holds the lock may call another.
    """

    @functools.wraps(function)
    def locked(node: Node, /, *arguments: P.args, **named: P.kwargs) -> T:
        with node.trust.heads_lock:
            return function(node, *arguments, **named)

    return locked


@one_at_a_time
def own_head(node: Node) -> SignedHead | None:
    """Return the status record of what this node published and stands by; None if it never published anything.

    It is signed again when that changed, or half its life is over.  Blocks; a sequence is signed once, whoever asks.
    """
    own = node.identity.own
    now = int(time.time())
    stamp, signed = node.identity.head
    if stamp == node.permission.stamp and signed is not None and _fresh(signed.head, now):
        return signed
    stamp = node.permission.stamp  # of before what is read now
    withdrawn = node.trust.records.withdrawn_by(own)
    holding = stands_by(node, own)
    known = _known(node, own)
    if known is None and not holding:
        return None
    if known is None or not _still_says(known.head, holding, withdrawn, now):
        known = sign_head(node, holding, withdrawn)
        stamp = node.permission.stamp  # keeping it is a change as well
    node.identity.head = (stamp, known)
    return known


def stands_by(node: Node, publisher: str) -> list[str]:
    """List the artifacts that a publisher whose key is here stands by: all that hold, but the withheld ones.

    No row is read of all the others: there may be tens of thousands.
    """
    withheld, caught = node.permission.withheld()
    if publisher in caught:
        return []
    left_out = withheld | node.trust.records.withdrawn_by(publisher).keys()
    return [name for name in node.store.ids_of(publisher, time.time()) if name not in left_out]


def _fresh(head: Head, now: int) -> bool:
    """Return True unless a status record must be signed again for its age.

    One from the future must be as well: readers refuse it.
    """
    return head.issued - LIMITS.clock_skew_seconds <= now < head.issued + _RENEW_SECONDS


def _still_says(head: Head, holding: list[str], withdrawn: dict[str, str], now: int) -> bool:
    return (
        head.catalogue == catalogue_root(holding)
        and head.reasons == {a: reason(why) for a, why in withdrawn.items()}
        and _fresh(head, now)
    )


def sign_head(node: Node, holding: list[str], withdrawn: dict[str, str], next_key: Key | None = None) -> SignedHead:
    """Sign the next status record of this node's publisher key, and keep it in database and file.

    `holding`: the artifacts it stands by; `withdrawn`: reasons by artifact; `next_key`: the key that succeeds this one.
    """
    made = _signed_by(node, node.identity.publisher, holding, withdrawn, next_key)
    node.identity.head = ((), None)  # read again at the next look
    return made


def _signed_by(node: Node, key: Key, holding: list[str], withdrawn: dict[str, str], next_key: Key | None) -> SignedHead:
    publisher = str(key.peer_id)
    known = node.trust.records.head(publisher)
    sequence = known[0] + 1 if known else 1
    made = make_head(key, sequence, int(time.time()), holding, withdrawn, next_key)
    node.trust.records.put_head(
        publisher, ToldHead(sequence, made.envelope, made.head.reasons, held=withdrawn.keys(), kept=True)
    )
    node.trust.head_files.put(publisher, made.envelope)
    return made


def _known(node: Node, publisher: str) -> SignedHead | None:
    row = node.trust.records.head(publisher)
    return read_head(row[1]) if row else None


@one_at_a_time
def heads_of(node: Node, publishers: Iterable[str]) -> list[bytes]:
    """Return the status records of these publishers that are known and have not expired, for a reader.

    Those of this node's retired keys come with them.  Blocks.
    """
    now = time.time()
    out: list[bytes] = []
    for publisher in dict.fromkeys([*publishers, *node.identity.retired]):
        if len(out) == LIMITS.heads_told:
            break
        signed = own_head(node) if publisher == node.identity.own else _known(node, publisher)
        if signed is not None and publisher in node.identity.retired and not _fresh(signed.head, int(now)):
            signed = _still_retired(node, signed.head)
        if signed is not None and signed.head.expires > now:
            out.append(signed.envelope)
    return out


@one_at_a_time
def hear_heads(node: Node, envelopes: Iterable[bytes], peer: str) -> None:
    """Keep the status records that are newer than those we have, and remove what they withdraw.  Blocks.

    A peer that passes on a forged one is not asked for a while.
    """
    for signed in told(node, peer, KIND, envelopes, LIMITS.heads_told, read_head):
        head = signed.head
        if head.publisher == node.identity.own:
            continue
        try:
            known = _known(node, head.publisher)
            newer = accept(head, known.head if known else None, int(time.time()))
            if newer or (known is not None and head == known.head):
                node.trust.head_came(peer, head.publisher, newer)
            if not newer:
                continue
        except Untrusted as error:
            node.events.add("head_refused", publisher=head.publisher, peer=peer, reason=error.message)
            continue
        reasons = head.reasons
        here = set(node.store.ids_of(head.publisher)) if reasons else set()
        node.trust.records.hear_head(
            head.publisher, ToldHead(head.sequence, signed.envelope, reasons, teller=peer, held=here)
        )
        if node.trust.policy.policy.trusts(head.publisher):
            node.trust.head_files.put(head.publisher, signed.envelope)
        for artifact in sorted(here & reasons.keys()):
            with contextlib.suppress(NotFound):  # collected meanwhile
                node.store.remove(artifact)
            node.events.add("withdrawn", artifact=artifact, publisher=head.publisher, reason=reasons[artifact])
        if here & reasons.keys():
            node.background.spawn_from(lambda: collect(node))
        with heard(node):
            follow(node, head)


async def collect(node: Node) -> None:
    """Delete the chunks that belong to no artifact any more."""
    await asyncio.to_thread(node.store.collect)


def follow(node: Node, head: Head) -> None:
    """Trust the successor that a trusted publisher names and that has signed as well, unless the user removed it.

    Where the trust list cannot be written, that is done later (`waiting.attend`).
    """
    policy, then = node.trust.policy.policy, head.successor
    if then is None or head.publisher not in policy.publishers or not policy.trusts(head.publisher):
        return
    if policy.caught(then.peer) is None and not policy.trusts(then.peer) and then.peer not in policy.removed:
        node.trust.to_follow[head.publisher] = head
        added = node.trust.policy.follow(then.peer, policy.publishers[head.publisher].label, head.publisher)
        node.trust.to_follow.pop(head.publisher, None)
        if not added:
            return
        node.events.add("trusted", publisher=then.peer, how=f"the successor of {head.publisher}")


def _still_retired(node: Node, head: Head) -> SignedHead:
    """Sign the last status record of a retired key again: it names the same successor."""
    then = head.successor
    last = next(
        (key for peer, key in node.identity.retired.items() if then and peer == then.peer), node.identity.publisher
    )
    return _signed_by(node, node.identity.retired[head.publisher], stands_by(node, head.publisher), head.reasons, last)


def require_current(node: Node, statement: Statement) -> None:
    """Raise `Untrusted` for an artifact that its publisher has withdrawn."""
    artifact, publisher = str(statement.artifact), statement.manifest.publisher
    why = node.trust.records.withdrawn(artifact, publisher)
    if why is not None:
        raise Untrusted(
            f"artifact {artifact} was withdrawn by its publisher: {why}", cause="it is not to be used any more"
        )


def freshness(node: Node, publisher: str) -> str:
    """Describe, for people to read, how old the news of a publisher's withdrawals is; empty when it is current."""
    known = _known(node, publisher)
    if known is None:
        return "no head record of the publisher is known: it may have been withdrawn"
    late = int(time.time()) - known.head.expires
    return f"the publisher's last head record expired {late // 3600} hours ago" if late > 0 else ""
