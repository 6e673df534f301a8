"""The order of checks between received bytes and a manifest one may act on.

    size cap -> envelope -> signature by the named key -> payload parsed -> that key is the publisher
    -> every field consistent -> life -> policy

`read_statement` does everything that depends on the bytes alone, `verify_envelope` adds the clock,
`require_trust` the policy.  All before a single chunk is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import Untrusted
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.trust.envelopes import open_signed, require_signer
from kvswap.trust.policy import Policy


@dataclass(frozen=True, slots=True)
class Statement:
    """A manifest whose signature is that of its publisher."""

    artifact: Cid
    manifest: Manifest
    envelope: bytes


def read_statement(data: bytes) -> Statement:
    """Check envelope, signature and payload.  Raises `MalformedManifest` or `IntegrityError`."""
    signer, payload = open_signed(data)
    manifest = Manifest.parse(payload)
    require_signer(signer, manifest.publisher, "publisher")
    return Statement(Cid.of(payload), manifest, data)


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


def require_trust(statement: Statement, policy: Policy, *, strangers: bool = False) -> None:
    """Raise `Untrusted`, with the command that would trust, unless the policy allows the publisher.

    `strangers`: what it makes is going to be verified instead; nobody who was caught gets that.
    """
    publisher = statement.manifest.publisher
    if (caught := policy.caught(publisher)) is not None:
        raise Untrusted(
            f"artifact {statement.artifact} is signed by {publisher}, who was caught: {caught.why}",
            cause=f"audit {caught.evidence}" if caught.evidence else "this node's own check",
            hint=f"kvswap trust audits {publisher}",
            publisher=publisher,
        )
    if not strangers and not policy.trusts(publisher):
        raise Untrusted(
            f"artifact {statement.artifact} is signed by {publisher}, whom this node does not trust",
            cause="publishers are trusted one by one; with --strangers what one of them made is verified instead",
            hint=f"kvswap trust add {publisher}",
            publisher=publisher,
        )
