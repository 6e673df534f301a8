"""The standing of artifacts that are here: whether each may be used, and whether it may be offered and served.

One place answers, from what is remembered - the policy, withdrawals, audits, how its verification ended, the
clock - and everything that uses, lists, announces or serves an artifact asks it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kvswap.core.limits import LIMITS
from kvswap.store import ArtifactRow, AuditRow, Outcome, Records
from kvswap.trust import Policy, PolicyFile
from kvswap.trust.audit import read_audit
from kvswap.trust.levels import PROOF_RULES, RULES

Name = Literal[
    "own", "trusted", "verified", "unverified", "disputed", "wrong", "caught", "withdrawn", "expired", "future"
]
OFFERED: tuple[Name, ...] = ("own", "trusted", "verified", "unverified", "future")


@dataclass(frozen=True, slots=True)
class Standing:
    """The standing of one artifact, and the reason in human-readable form.

    "own" and "trusted" are by the policy, "verified" is by an untrusted publisher and passed all levels to V5 here,
    "unverified" is one that did not.  "disputed", "wrong" (it failed an audit by a trusted auditor, or a level found so
    without banning anybody: this node made it itself, or nobody is proved to be to blame), of a "caught" (banned)
    publisher, "withdrawn" and "expired" are neither used nor offered.  "future" (it came later than now) is not used,
    and is offered: this machine's clock may be the one that is wrong, and who fetches judges by its own.
    """

    name: Name
    why: str = ""
    others: tuple[str, ...] = ()

    @property
    def offered(self) -> bool:
        """True if peers may be told of the artifact and be given it."""
        return self.name in OFFERED


# One object each: most of a large store have one of these.
_OWN, _TRUSTED, _VERIFIED = Standing("own"), Standing("trusted"), Standing("verified")
_UNVERIFIED, _EXPIRED = Standing("unverified"), Standing("expired")


class Standings:
    """The rules that give every artifact of one node its standing.  May be used from several threads."""

    def __init__(self, records: Records, policy: PolicyFile) -> None:
        self._records = records
        self._policy = policy

    @property
    def stamp(self) -> tuple[object, ...]:
        """A value that changes whenever an answer may have changed by more than the passing of time."""
        return (self._records.generation, self._policy.policy)

    def of(self, row: ArtifactRow) -> Standing:
        """Return the standing of an artifact of the index now."""
        return self.of_all([row])[0]

    def of_all(self, rows: Sequence[ArtifactRow]) -> list[Standing]:
        """Return the standings of these artifacts now, in their order."""
        names = [row.id for row in rows]
        withdrawn, outcomes = self._records.withdrawn_of(names), self._records.outcomes(names)
        failed, now, policy = self.failed(names), time.time(), self._policy.policy
        out = []
        for row in rows:
            said, outcome = withdrawn.get((row.id, row.publisher)), current(outcomes.get(row.id))
            out.append(_judge(row, said, failed.get(row.id), outcome, policy, now))
        return out

    def failed(self, artifacts: Sequence[str]) -> dict[str, AuditRow]:
        """Return an audit for each of these artifacts that failed one by a trusted auditor or this node.

        Void audits are left out.  It counts whatever becomes of the publisher: who is trusted again, or forgotten, made
        no other cache by that.
        """
        rows = [row for row in self._records.failures(artifacts) if self._policy.policy.trusts(row.auditor)]
        return {row.artifact: row for row in rows if not void(row)}

    def withheld(self) -> list[str]:
        """List all artifacts that may be disputed or wrong, whether here or not; `of` gives the standing of each."""
        return self._records.withheld()

    def banned_publishers(self) -> set[str]:
        """Return the publishers that are banned."""
        return {peer for peer in self._policy.policy.banned if self._policy.policy.ban_of(peer) is not None}


def _judge(
    row: ArtifactRow,
    withdrawn: str | None,
    failed: AuditRow | None,
    outcome: Outcome | None,
    policy: Policy,
    now: float,
) -> Standing:
    if withdrawn is not None:
        return Standing("withdrawn", withdrawn or "its publisher does not stand by it any more")
    if (ban := policy.ban_of(row.publisher)) is not None:
        return Standing("caught", ban.why)
    if failed is not None:
        return Standing("wrong", f"it failed an audit by {failed.auditor}: {read_audit(failed.envelope).audit.why}")
    if outcome is not None and outcome.verdict == "wrong":
        return Standing("wrong", outcome.why)
    trusted = policy.trusts(row.publisher)
    # No untrusted publisher disputes what the user trusts.
    if outcome is not None and outcome.verdict == "disputed" and not trusted:
        return Standing("disputed", outcome.why, outcome.others)
    if row.expires <= now:
        return _EXPIRED
    if row.added > now + LIMITS.clock_skew_seconds:
        return Standing("future", "it was made or came when this machine's clock was ahead")
    if trusted:
        return _OWN if row.publisher == policy.own else _TRUSTED
    return _VERIFIED if passed(outcome) else _UNVERIFIED


def void(row: AuditRow) -> bool:
    """Return True if an audit condemns by older rules: it does not count."""
    return row.failed and read_audit(row.envelope).audit.void


def current(outcome: Outcome | None) -> Outcome | None:
    """Return an outcome that the present rules would not undo, or None, and the artifact is judged again.

    What passed has to have passed all that is checked now.  What was withheld stays so: that took no more.
    """
    if outcome is None:
        return None
    oldest = RULES if outcome.verdict == "passed" else PROOF_RULES
    return outcome if oldest <= outcome.rules <= RULES else None


def passed(outcome: Outcome | None) -> bool:
    """Return True if a whole verification, by the present rules, ended without a failure and with nothing lacking."""
    outcome = current(outcome)
    return outcome is not None and outcome.verdict == "passed"
