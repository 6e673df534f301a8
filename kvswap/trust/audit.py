"""Audits: signed statements of what a reader found when it computed an artifact, or samples of it, again.

    manifest, check, positions, worst difference, verdict, auditor, environment

An audit is signed by the auditor's publisher key.  A node counts the audits of auditors that it trusts, with the
positions they looked at; others decide nothing.  The positions follow from the seed, so an auditor that wanted to
choose them would have had to choose the seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from kvswap.artifact.manifest import CidBytes
from kvswap.artifact.specs import Count, Digest, Positive, Text
from kvswap.core import wire
from kvswap.core.errors import MalformedManifest
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.trust.envelopes import check_cid, open_signed, reason, require_signer, sign_value
from kvswap.trust.keys import Key
from kvswap.trust.levels import PROOF_RULES, Level
from kvswap.trust.sampling import coverage, draw

KIND = "application/vnd.kvswap.audit.v1+msgpack"
PASSED, FAILED = "passed", "failed"
_LEVELS = (Level.TOKENS, Level.SAMPLES, Level.RECOMPUTE)
_RULES = "rules "  # marks one text of the environment; readers of older versions skip it as any other


class Audit(msgspec.Struct, frozen=True):
    """The statement of an auditor: what it looked at and found.  Fields that a later version adds are skipped.

    `worst`: largest difference that was seen, in millionths of the honest noise; `samples`: number of positions that
    were sampled, 0 for all of them.
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
        """True if the auditor found the artifact wrong."""
        return self.verdict == FAILED

    @property
    def rules(self) -> int:
        """The version of the proof rules that the auditor followed, by its environment; 1 where that names none."""
        parts = [text.removeprefix(_RULES) for text in self.environment if text.startswith(_RULES)]
        return int(parts[0]) if parts and parts[0].isascii() and parts[0].isdigit() else 1

    @property
    def void(self) -> bool:
        """True if it condemns by older rules, which took for a lie what the reader's own side can explain."""
        return self.failed and self.rules < PROOF_RULES

    def is_early(self, now: float) -> bool:
        """Return True if it was issued after `now` (Unix seconds) by more than clocks may differ."""
        return self.issued > now + LIMITS.clock_skew_seconds

    @property
    def positions(self) -> list[int]:
        """The token positions that were looked at, drawn again from the seed; empty for all positions."""
        return draw(self.seed, self.artifact, self.tokens, self.samples) if self.samples else []

    @property
    def cid(self) -> Cid:
        """The id of the artifact."""
        return Cid.from_bytes(self.artifact)


@dataclass(frozen=True, slots=True)
class SignedAudit:
    """An audit with its envelope; `id` is the CID of its payload."""

    id: str
    audit: Audit
    envelope: bytes


def environment_of(*parts: str) -> list[str]:
    """Return the `environment` field of an audit: the given texts, then the version of the proof rules."""
    return [*parts, f"{_RULES}{PROOF_RULES}"]


def sign_audit(audit: Audit, key: Key) -> SignedAudit:
    """Sign an audit with the auditor's key; its reason is escaped and cut so that readers accept it.

    Raises `UsageError` where another text holds control characters.
    """
    return read_audit(sign_value(msgspec.structs.replace(audit, why=reason(audit.why)), key, KIND))


def read_audit(data: bytes) -> SignedAudit:
    """Parse an audit and check its signature, version and bounds.

    Raises `MalformedManifest` or `IntegrityError`.
    """
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
    """The positions of one artifact that several audits checked together.

    `positions` counts different ones; `one` is the least probability that a single changed position would have been
    seen, `span` the same for a changed span of 64 tokens.
    """

    readers: int
    positions: int
    tokens: int
    one: float
    span: float

    def to_json(self) -> dict[str, float | int]:
        """Return the JSON form, probabilities rounded to four digits."""
        out: dict[str, float | int] = {"readers": self.readers, "positions": self.positions, "tokens": self.tokens}
        return out | {"one_position": round(self.one, 4), "span_of_64": round(self.span, 4)}


def covered(audits: Iterable[Audit]) -> Coverage | None:
    """Sum up the passed audits of one artifact, made by trusted auditors; None where none of them looked at layers."""
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
