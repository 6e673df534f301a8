"""The order of checks between received bytes and a manifest one may act on.

    size cap -> envelope -> signature by the named key -> payload parsed -> that key is the publisher
    -> every field consistent -> life -> policy

`read_statement` does everything that depends on the bytes alone, `verify_envelope` adds the clock,
`require_trust` the policy.  All before a single chunk is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvswap.artifact import dsse
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import IntegrityError, MalformedManifest, Untrusted, UsageError
from kvswap.core.ids import Cid, PeerId
from kvswap.core.limits import LIMITS
from kvswap.trust.keys import check_signature
from kvswap.trust.policy import Policy


@dataclass(frozen=True, slots=True)
class Statement:
    """A manifest whose signature is that of its publisher."""

    artifact: Cid
    manifest: Manifest
    envelope: bytes


def read_statement(data: bytes) -> Statement:
    """Check envelope, signature and payload.  Raises `MalformedManifest` or `IntegrityError`."""
    envelope = dsse.open_envelope(data)
    signature = envelope.signatures[0]
    try:
        signer = PeerId.parse(signature.keyid)
    except UsageError as error:
        raise MalformedManifest("the signature names no Ed25519 key", field="keyid") from error
    check_signature(signer.public_key, signature.sig, dsse.pae(envelope.payload_type, envelope.payload))
    manifest = Manifest.parse(envelope.payload)
    if manifest.publisher != str(signer):
        raise IntegrityError(
            f"signed by {signer}, but the publisher it names is {manifest.publisher}",
            cause="somebody signed another publisher's manifest",
        )
    return Statement(Cid.of(envelope.payload), manifest, data)


def verify_envelope(data: bytes, now: int) -> Statement:
    """`read_statement`, and the statement's life.  Raises `Untrusted` outside it."""
    statement = read_statement(data)
    life = statement.manifest.life
    if now >= life.expires:
        raise Untrusted(
            f"artifact {statement.artifact} expired at {life.expires} (now {now})",
            cause="the publisher has not renewed it",
            hint="ask the publisher to publish again",
        )
    if life.issued > now + LIMITS.clock_skew_seconds:
        raise Untrusted(
            f"artifact {statement.artifact} is issued in the future ({life.issued}, now {now})",
            cause="this machine's clock, or the publisher's, is wrong",
        )
    return statement


def require_trust(statement: Statement, policy: Policy) -> None:
    """Raise `Untrusted`, with the command that would trust, unless the policy allows the publisher."""
    publisher = statement.manifest.publisher
    if not policy.trusts(publisher):
        raise Untrusted(
            f"artifact {statement.artifact} is signed by {publisher}, whom this node does not trust",
            cause="publishers are trusted one by one",
            hint=f"kvswap trust add {publisher}",
            publisher=publisher,
        )
