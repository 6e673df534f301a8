"""The order of checks between received bytes and a manifest that may be acted on.

    size cap -> envelope -> signature by the named key -> decrypted, where it is encrypted -> payload parsed
    -> that key is the publisher -> every field consistent -> lifetime -> policy

`read_statement` does everything that depends on the bytes alone, `verify_envelope` adds the clock, `require_trust` the
policy.  All of it comes before a single chunk is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from kvswap.artifact import sealing
from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.sealing import Seal, Sealed
from kvswap.core.errors import NotAMember, Untrusted
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.core.words import in_words
from kvswap.trust.envelopes import kind_of, open_signed, require_signer
from kvswap.trust.groups import PUBLIC, Identifiers, Keys, no_keys
from kvswap.trust.policy import Policy


@dataclass(frozen=True, slots=True)
class Statement:
    """A manifest whose signature is that of its publisher.

    `seal`: the key that opens its files, where it is encrypted for a group; `identifiers` are then the group's
    identifiers.
    """

    artifact: Cid
    manifest: Manifest
    envelope: bytes
    seal: Seal | None = None
    identifiers: Identifiers = PUBLIC

    @property
    def reference(self) -> str | None:
        """The document's identifier as peers are told it, or None where the manifest names no document."""
        document = self.manifest.document
        return self.identifiers.document(document.reference) if document is not None else None

    @property
    def key(self) -> bytes | None:
        """The encryption key that a process needs to read this artifact, and no other; None where it is public."""
        return self.seal.key if self.seal is not None else None


def read_statement(data: bytes, keys: Keys = no_keys) -> Statement:
    """Check the envelope, the signature and the payload of a manifest.

    Raises `MalformedManifest`, `IntegrityError`, or `NotAMember` for one that is encrypted and that `keys` do not open.
    """
    if kind_of(data) != sealing.KIND:
        signer, payload = open_signed(data)
        manifest = parse_manifest(payload)
        require_signer(signer, manifest.publisher, "publisher")
        return Statement(Cid.of(payload), manifest, data)
    signer, payload = open_signed(data, sealing.KIND)
    sealed = Sealed.parse(payload)
    artifact = Cid.of(payload)
    opened = keys(sealed.salt, sealed.mark)
    if opened is None:
        raise NotAMember(
            f"artifact {artifact} by {signer} is sealed for a group that this node is not in",
            cause="who published it shares it with the holders of a key",
            hint="kvswap group import, with the key from a member",
        )
    seal, identifiers = opened
    manifest = seal.open_manifest(sealed)
    require_signer(signer, manifest.publisher, "publisher")
    return Statement(artifact, manifest, data, seal, identifiers)


def verify_envelope(data: bytes, now: int, keys: Keys = no_keys) -> Statement:
    """Check a manifest as `read_statement` does, and that it is issued and not expired at `now` (Unix seconds).

    Raises `Untrusted` where it is not, and what `read_statement` raises.
    """
    statement = read_statement(data, keys)
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


def require_trust(statement: Statement, policy: Policy, *, allow_untrusted: bool = False) -> None:
    """Raise `Untrusted`, with the command that would trust, unless the policy allows the publisher.

    `allow_untrusted`: an untrusted publisher is allowed, as its artifact is going to be verified instead; a banned one
    never is.
    """
    publisher = statement.manifest.publisher
    if (ban := policy.ban_of(publisher)) is not None:
        raise Untrusted(
            f"artifact {statement.artifact} is signed by {publisher}, who is banned: {in_words(ban.why)}",
            cause=f"audit {ban.evidence}" if ban.evidence else "this node's own check",
            hint=f"kvswap trust audits {publisher}",
            publisher=publisher,
        )
    if not allow_untrusted and not policy.trusts(publisher):
        raise Untrusted(
            f"artifact {statement.artifact} is signed by {publisher}, whom this node does not trust",
            cause="publishers are trusted one by one; with --allow-untrusted its artifact is verified instead",
            hint=f"kvswap trust add {publisher}",
            publisher=publisher,
        )
