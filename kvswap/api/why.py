"""The answer to why a cache would be used here, or would not."""

from __future__ import annotations

from kvswap.api.plans import PlanBasis, PlanSummary
from kvswap.api.result import Result


class WhyArtifact(Result, frozen=True, kw_only=True):
    """An artifact that could be used, and what is known for and against it here."""

    artifact: str
    publisher: str
    trusted: bool
    problem: str | None
    """The reason why it would not be used; None where nothing is known against it."""
    standing: str | None
    """The standing in this node's store; None: it is not here."""
    why: str | None
    """The reason for the standing."""


class WhyResult(Result, frozen=True, kw_only=True):
    """The plan for a document with the figures that it was made from, and the artifacts that were weighed."""

    plan: PlanSummary
    basis: PlanBasis
    artifacts: list[WhyArtifact]
