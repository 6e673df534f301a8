"""The results of verifying: the checks of an artifact level by level, and what nobody looked at."""

from __future__ import annotations

from typing import Any, Self

import msgspec
from msgspec import field

from kvswap.api.result import OpenResult, Result


class Verification(Result, frozen=True, kw_only=True):
    """The checks that an artifact had passed when it was fetched."""

    publisher: str
    label: str | None
    """The name that the user gave the publisher."""
    trusted: bool
    """True if the user trusts the publisher."""
    passed: list[str]
    """The levels that were passed, `V0` to `V7`."""
    unchecked: dict[str, str]
    """The levels that were not checked, and why."""
    own: bool = False
    """True for what this node published itself."""


class Check(OpenResult, frozen=True, kw_only=True):
    """One check of an artifact.  What it measured is in `more`, which differs from level to level."""

    level: str = field(name="step")
    """The level, `V0` to `V7`."""
    name: str
    verdict: str
    """The verdict: `passed`, `failed`, or `skipped`."""
    proven: bool | None = None
    """True if what a failed check found is proved to be the publisher's doing; None for a check that did not fail."""
    seconds: float
    why: str
    """The fault, or the reason why the check was not done; empty where it passed."""


class CoverageFigures(Result, frozen=True, kw_only=True):
    """The positions of an artifact that several audits checked together."""

    readers: int
    positions: int
    tokens: int
    one_position: float
    """The probability that a single changed position would have been seen."""
    span_of_64: float
    """The same for a changed span of 64 tokens."""


class VerifyResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap verify` of an artifact."""

    artifact: str
    verified: bool
    publisher: str
    trusted: bool
    signature: bool
    chunks: int
    """The chunks that were hashed."""
    tensors: int | None
    """The tensors whose digests were compared; None: they were not."""
    probe: bool | None
    """True if the probe's answer has the same tokens; None: it was not made."""
    probe_bitwise: bool | None
    """True if its logits are the same to the bit."""
    same_environment: bool | None
    """True if this machine computes as the publisher's does."""
    coverage: CoverageFigures | None
    claims: dict[str, str]
    """The publisher's word for what nobody can check, by field of the manifest."""
    passed: list[str]
    """The levels that were passed, `V0` to `V7`."""
    unchecked: dict[str, str]
    """The levels that were not checked, and why."""
    checks: list[Check] = field(name="steps")

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, as `--json` prints it."""
        json: dict[str, Any] = msgspec.to_builtins(self)
        return json | {"steps": [check.to_json() for check in self.checks]}

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read JSON text.  Raises `msgspec.DecodeError`."""
        return cls.from_json(msgspec.json.decode(data))

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read the JSON form.  Raises `msgspec.ValidationError` for another one."""
        if not isinstance(value, dict) or not isinstance(steps := value.get("steps"), list):
            return msgspec.convert(value, cls)
        return msgspec.convert({**value, "steps": [Check.from_json(step) for step in steps]}, cls)


class StoreCheck(Result, frozen=True, kw_only=True):
    """The result of `kvswap verify --store`: every file of the store was hashed."""

    checked: int
    adopted: int
    """Files that were there and not in the index."""
    quarantined: int
    """Files that are not what their name says, which were set aside."""
    missing: int
    """Files that the index has and the disk has not."""
    incomplete_artifacts: int
    clean: bool
    """True if no file was wrong or missing."""
