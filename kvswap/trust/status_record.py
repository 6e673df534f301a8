"""Publisher status records: the newest statement of a publisher about everything it published.

An artifact's manifest lives for weeks; a status record lives two days at most and says what has been withdrawn since,
and by which key the publisher goes on.  After TUF's timestamp and snapshot roles
(https://theupdateframework.github.io/specification/): the highest sequence number is kept, so nobody can roll a reader
back; a record expires, so nobody can freeze it for long; a sequence may not jump, so nobody who had the key for a
moment can use all numbers up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from kvswap.artifact.manifest import CidBytes
from kvswap.artifact.specs import Count, Digest, Text
from kvswap.core import wire
from kvswap.core.errors import MalformedManifest, Untrusted
from kvswap.core.ids import Cid, PeerId, blake3_digest
from kvswap.core.limits import LIMITS
from kvswap.trust.envelopes import check_cid, open_signed, reason, require_signer, sign_value
from kvswap.trust.keys import Key, check_signature

KIND = "application/vnd.kvswap.head.v1+msgpack"
_JUMP = 1_000_000  # one record a second takes eleven days to get this far

Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]


class Withdrawn(msgspec.Struct, frozen=True):
    """An artifact that its publisher no longer stands by, and why."""

    artifact: CidBytes
    why: Text


class Successor(msgspec.Struct, frozen=True):
    """The key by which the publisher goes on; `sig` is that key's own signature over both names."""

    peer: Annotated[str, Meta(max_length=64)]
    sig: Signature


class StatusRecord(msgspec.Struct, frozen=True):
    """A publisher's status record.  Fields of a later version are skipped: a withdrawal is obeyed all the same.

    `issued` and `expires` are in Unix seconds; `catalogue` is the BLAKE3 digest of the sorted ids of the artifacts that
    stand, `artifacts` their number.
    """

    version: int
    publisher: Annotated[str, Meta(max_length=64)]
    sequence: Count
    issued: Count
    expires: Count
    catalogue: Digest
    artifacts: Count
    withdrawn: Annotated[list[Withdrawn], Meta(max_length=LIMITS.status_record_withdrawals)]
    successor: Successor | None

    @property
    def reasons(self) -> dict[str, str]:
        """The reasons of the withdrawals, by artifact id."""
        return {str(Cid.from_bytes(w.artifact)): w.why for w in self.withdrawn}


@dataclass(frozen=True, slots=True)
class SignedStatusRecord:
    """A publisher's status record with its envelope."""

    record: StatusRecord
    envelope: bytes


def artifacts_root(artifacts: Iterable[str]) -> bytes:
    """Compute the BLAKE3 digest of a set of artifact ids, given in any order."""
    return blake3_digest(b"".join(sorted(bytes(Cid.parse(a)) for a in artifacts)))


def make_status_record(
    key: Key, sequence: int, now: int, artifacts: list[str], withdrawn: Mapping[str, str], next_key: Key | None = None
) -> SignedStatusRecord:
    """Make and sign a publisher's status record that lives as long as one may.

    `now` is in Unix seconds, `withdrawn` maps artifact ids to reasons; with `next_key` it names a successor, which
    signs as well.
    """
    own = str(key.peer_id)
    successor = None
    if next_key is not None:
        named = str(next_key.peer_id)
        successor = Successor(named, next_key.sign(_succession(own, named)))
    record = StatusRecord(
        version=1,
        publisher=own,
        sequence=sequence,
        issued=now,
        expires=now + LIMITS.status_record_seconds,
        catalogue=artifacts_root(artifacts),
        artifacts=len(artifacts),
        withdrawn=[Withdrawn(bytes(Cid.parse(a)), reason(why)) for a, why in sorted(withdrawn.items())],
        successor=successor,
    )
    return read_status_record(sign_value(record, key, KIND))


def read_status_record(data: bytes) -> SignedStatusRecord:
    """Parse a publisher's status record and check all that depends on the bytes alone, its signatures included.

    Raises `MalformedManifest` or `IntegrityError`.
    """
    signer, payload = open_signed(data, KIND, LIMITS.status_record_bytes)
    record = wire.unpack(payload, StatusRecord, items=LIMITS.status_record_items)
    if record.version != 1:
        raise MalformedManifest("not a status record of version 1", field="version")
    require_signer(signer, record.publisher, "publisher")
    if not record.issued < record.expires <= record.issued + LIMITS.status_record_seconds:
        raise MalformedManifest("a status record lives for 48 hours at most", field="expires")
    for one in record.withdrawn:
        check_cid(one.artifact, "withdrawn")
    if (then := record.successor) is not None:
        key = PeerId.parse(then.peer).public_key
        check_signature(key, then.sig, _succession(record.publisher, then.peer))
    return SignedStatusRecord(record, data)


def _succession(old: str, new: str) -> bytes:
    return b"kvswap successor v1 " + old.encode() + b" " + new.encode()


def check_life(record: StatusRecord, now: int) -> None:
    """Raise `Untrusted` for a status record that has expired, or that was issued in the future."""
    if record.issued > now + LIMITS.clock_skew_seconds:
        raise Untrusted(f"a status record of {record.publisher} is issued in the future", cause="a clock is wrong")
    if now >= record.expires:
        raise Untrusted(f"a status record of {record.publisher} expired at {record.expires} (now {now})")


def accept(record: StatusRecord, known: StatusRecord | None, now: int) -> bool:
    """Return True if `record` replaces the `known` record; `now` is in Unix seconds.

    An expired or older record is no error: its sender has not heard of the newer one.  Raises `Untrusted` for what no
    honest publisher signs: a sequence that jumps, two records of one number, one from the future.
    """
    if now >= record.expires:
        return False
    check_life(record, now)
    if known is None:
        return True
    if record.sequence > known.sequence + _JUMP:
        raise Untrusted(
            f"a status record of {record.publisher} jumps from sequence {known.sequence} to {record.sequence}",
            cause="somebody else had the publisher's key",
        )
    if record.sequence == known.sequence and record != known:
        raise Untrusted(
            f"there are two status records {record.sequence} of {record.publisher}",
            cause="it tells different readers different things",
        )
    return record.sequence > known.sequence
