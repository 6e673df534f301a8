"""Head records: the newest word of a publisher about everything it published.

An artifact's manifest lives for weeks; a head lives two days at most and says what has been withdrawn
since, and by which key the publisher goes on.  After TUF's timestamp and snapshot roles
(https://theupdateframework.github.io/specification/): the highest sequence is kept, so nobody can roll a
reader back; a head expires, so nobody can freeze it for long; a sequence may not jump, so nobody who
had the key for a moment can use all of them up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from kvswap.artifact.manifest import CidBytes, Count, Digest, Text
from kvswap.core import wire
from kvswap.core.errors import MalformedManifest, Untrusted
from kvswap.core.ids import Cid, PeerId, blake3_digest
from kvswap.core.limits import LIMITS
from kvswap.trust.envelopes import check_cid, open_signed, reason, require_signer, sign_value
from kvswap.trust.keys import Key, check_signature

KIND = "application/vnd.kvswap.head.v1+msgpack"
_JUMP = 1_000_000  # a publisher that signs a head a second takes eleven days for this

Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]


class Withdrawn(msgspec.Struct, frozen=True):
    """An artifact that its publisher does not stand by any more."""

    artifact: CidBytes
    why: Text


class Successor(msgspec.Struct, frozen=True):
    """The key by which the publisher goes on; `sig` is its own, over both names."""

    peer: Annotated[str, Meta(max_length=64)]
    sig: Signature


class Head(msgspec.Struct, frozen=True):
    """Records what a publisher says now.  Fields of a later version are skipped: a withdrawal is obeyed all the same.

    `catalogue`: BLAKE3 of the sorted ids of the artifacts that hold, `artifacts` how many these are.
    """

    version: int
    publisher: Annotated[str, Meta(max_length=64)]
    sequence: Count
    issued: Count
    expires: Count
    catalogue: Digest
    artifacts: Count
    withdrawn: Annotated[list[Withdrawn], Meta(max_length=LIMITS.head_withdrawn)]
    successor: Successor | None

    @property
    def reasons(self) -> dict[str, str]:
        """Why, by the ids of what was withdrawn."""
        return {str(Cid.from_bytes(w.artifact)): w.why for w in self.withdrawn}


@dataclass(frozen=True, slots=True)
class SignedHead:
    head: Head
    envelope: bytes


def catalogue_root(artifacts: Iterable[str]) -> bytes:
    """Of artifact ids in any order."""
    return blake3_digest(b"".join(sorted(bytes(Cid.parse(a)) for a in artifacts)))


def make_head(
    key: Key, sequence: int, now: int, artifacts: list[str], withdrawn: Mapping[str, str], next_key: Key | None = None
) -> SignedHead:
    """Signed, for as long as a head may live."""
    own = str(key.peer_id)
    successor = None
    if next_key is not None:
        named = str(next_key.peer_id)
        successor = Successor(named, next_key.sign(_succession(own, named)))
    head = Head(
        version=1,
        publisher=own,
        sequence=sequence,
        issued=now,
        expires=now + LIMITS.head_seconds,
        catalogue=catalogue_root(artifacts),
        artifacts=len(artifacts),
        withdrawn=[Withdrawn(bytes(Cid.parse(a)), reason(why)) for a, why in sorted(withdrawn.items())],
        successor=successor,
    )
    return read_head(sign_value(head, key, KIND))


def read_head(data: bytes) -> SignedHead:
    """What depends on the bytes alone.  Raises `MalformedManifest` or `IntegrityError`."""
    signer, payload = open_signed(data, KIND, LIMITS.head_bytes)
    head = wire.unpack(payload, Head, items=LIMITS.head_items)
    if head.version != 1:
        raise MalformedManifest("not a head record of version 1", field="version")
    require_signer(signer, head.publisher, "publisher")
    if not head.issued < head.expires <= head.issued + LIMITS.head_seconds:
        raise MalformedManifest("a head record lives for 48 hours at most", field="expires")
    for one in head.withdrawn:
        check_cid(one.artifact, "withdrawn")
    if (then := head.successor) is not None:
        key = PeerId.parse(then.peer).public_key
        check_signature(key, then.sig, _succession(head.publisher, then.peer))
    return SignedHead(head, data)


def _succession(old: str, new: str) -> bytes:
    return b"kvswap successor v1 " + old.encode() + b" " + new.encode()


def check_life(head: Head, now: int) -> None:
    """Raise `Untrusted` for a head that has expired, or is from the future."""
    if head.issued > now + LIMITS.clock_skew_seconds:
        raise Untrusted(f"a head of {head.publisher} is issued in the future", cause="a clock is wrong")
    if now >= head.expires:
        raise Untrusted(f"a head of {head.publisher} expired at {head.expires} (now {now})")


def accept(head: Head, known: Head | None, now: int) -> bool:
    """Whether `head` takes the place of the `known` one.  Raises `Untrusted` for what cannot be honest.

    An older head than the known one is not an error: somebody has not heard yet.
    """
    if now >= head.expires:
        return False
    check_life(head, now)
    if known is None:
        return True
    if head.sequence > known.sequence + _JUMP:
        raise Untrusted(
            f"a head of {head.publisher} jumps from sequence {known.sequence} to {head.sequence}",
            cause="somebody else had the publisher's key",
        )
    if head.sequence == known.sequence and head != known:
        raise Untrusted(
            f"there are two heads {head.sequence} of {head.publisher}",
            cause="it tells different readers different things",
        )
    return head.sequence > known.sequence
