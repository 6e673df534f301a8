"""Audit statements: what one reader found when it computed an artifact, or samples of it, again.

    manifest, step, positions, worst difference, verdict, by whom, in which environment

Signed by the auditor's publisher key.  A node counts the statements of auditors whom it trusts, with the
positions they looked at; what somebody else says decides nothing.  The positions follow from the seed, so
that an auditor who had chosen them to its liking would have had to choose the seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from kvswap.artifact.manifest import CidBytes, Count, Digest, Positive, Text
from kvswap.core import wire
from kvswap.core.errors import MalformedManifest
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.trust.envelopes import check_cid, open_signed, reason, require_signer, sign_value
from kvswap.trust.keys import Key
from kvswap.trust.ladder import PROOF_RULES, Level
from kvswap.trust.noise import MICRO
from kvswap.trust.sampling import coverage, draw

KIND = "application/vnd.kvswap.audit.v1+msgpack"
PASSED, FAILED = "passed", "failed"
_LEVELS = (Level.TOKENS, Level.SAMPLES, Level.RECOMPUTE)
_RULES = "rules "  # a text of the environment: readers of before take it for one more of those


class Audit(msgspec.Struct, frozen=True):
    """Records what an auditor looked at and found.  Fields that a later version adds are skipped.

    `worst`: largest difference that was seen, in millionths of honest noise; `samples`: 0 for all positions.
    """

    version: int
    artifact: CidBytes
    publisher: Annotated[str, Meta(max_length=64)]
    auditor: Annotated[str, Meta(max_length=64)]
    level: Count
    tokens: Positive
    samples: Count
    seed: Digest
    worst: Count
    verdict: Annotated[str, Meta(max_length=16)]
    why: Text
    environment: Annotated[list[Text], Meta(max_length=16)]
    issued: Count

    @property
    def failed(self) -> bool:
        return self.verdict == FAILED

    @property
    def rules(self) -> int:
        """The version of the rules by which it was judged, as its environment names it; 1 where it names none."""
        said = [text.removeprefix(_RULES) for text in self.environment if text.startswith(_RULES)]
        return int(said[0]) if said and said[0].isascii() and said[0].isdigit() else 1

    @property
    def void(self) -> bool:
        """Whether it condemns by older rules, which took for a lie what the reader's own side explains."""
        return self.failed and self.rules < PROOF_RULES

    def is_early(self, now: float) -> bool:
        """Say whether it was issued later than now, by more than clocks differ."""
        return self.issued > now + LIMITS.clock_skew_seconds

    @property
    def positions(self) -> list[int]:
        """Those that were looked at; empty for all of them."""
        return draw(self.seed, self.artifact, self.tokens, self.samples) if self.samples else []

    @property
    def cid(self) -> Cid:
        return Cid.from_bytes(self.artifact)


@dataclass(frozen=True, slots=True)
class SignedAudit:
    """With its envelope, and the digest of its payload as its id."""

    id: str
    audit: Audit
    envelope: bytes


def environment_of(*said: str) -> list[str]:
    """Returns what an audit says of where and by which rules it was made."""
    return [*said, f"{_RULES}{PROOF_RULES}"]


def sign_audit(audit: Audit, key: Key) -> SignedAudit:
    """Sign by the auditor's key, and word the reason so that others take it.  Raises `UsageError` for other texts."""
    return read_audit(sign_value(msgspec.structs.replace(audit, why=reason(audit.why)), key, KIND))


def read_audit(data: bytes) -> SignedAudit:
    """Checked.  Raises `MalformedManifest` or `IntegrityError`."""
    signer, payload = open_signed(data, KIND, LIMITS.audit_bytes)
    audit = wire.unpack(payload, Audit)
    if audit.version != 1 or audit.verdict not in (PASSED, FAILED) or audit.level not in _LEVELS:
        raise MalformedManifest("not an audit of version 1", field="version")
    if audit.samples > LIMITS.audit_samples or audit.tokens > LIMITS.manifest_blocks * LIMITS.block_tokens:
        raise MalformedManifest("more samples than the cap", field="samples")
    require_signer(signer, audit.auditor, "auditor")
    check_cid(audit.artifact, "artifact")
    return SignedAudit(str(Cid.of(payload)), audit, data)


@dataclass(frozen=True, slots=True)
class Coverage:
    """What several audits say together of one artifact."""

    readers: int
    positions: int  # different ones
    tokens: int
    one: float  # least chance that a single changed position would have been seen,
    span: float  # and a changed span of 64 tokens

    def to_json(self) -> dict[str, float | int]:
        out: dict[str, float | int] = {"readers": self.readers, "positions": self.positions, "tokens": self.tokens}
        return out | {"one_position": round(self.one, 4), "span_of_64": round(self.span, 4)}


def covered(audits: Iterable[Audit]) -> Coverage | None:
    """Of audits that passed, of one artifact, by auditors one trusts."""
    passed = [a for a in audits if not a.failed and a.level != Level.TOKENS]
    if not passed:
        return None
    tokens = passed[0].tokens
    if any(not a.samples for a in passed):
        return Coverage(len(passed), tokens, tokens, 1.0, 1.0)
    seen = {p for a in passed for p in a.positions}
    one = span = 1.0
    for a in passed:
        one *= 1 - coverage(tokens, a.samples, 1)
        span *= 1 - coverage(tokens, a.samples, min(64, tokens))
    return Coverage(len(passed), len(seen), tokens, 1 - one, 1 - span)


def micro(ratio: float) -> int:
    """A ratio to honest noise as an audit holds it."""
    return int(min(ratio, 1e6) * MICRO)
