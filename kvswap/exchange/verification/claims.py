"""The claims of a manifest that keep others from checking it: refused, or reported before the artifact is used."""

from __future__ import annotations

from kvswap.api.events import UncheckableEvent
from kvswap.core.errors import Untrusted
from kvswap.exchange.node.node import Node
from kvswap.exchange.request import Progress
from kvswap.trust import Statement
from kvswap.trust.accusation import claims, uncheckable


def refuse_uncheckable(statement: Statement) -> None:
    """Raise `Untrusted` for an untrusted publisher's artifact that by its own word nobody could verify.

    Such an artifact is not even fetched.
    """
    reasons = uncheckable(statement.manifest)
    if not reasons:
        return
    named = "; ".join(f"{where}: {why}" for where, why in reasons.items())
    raise Untrusted(
        f"artifact {statement.artifact} is an untrusted publisher's and cannot be verified ({named})",
        cause="what its manifest says keeps others from checking it",
        hint=f"kvswap trust add {statement.manifest.publisher}",
        unchecked=reasons,
    )


async def report_claims(node: Node, statement: Statement, progress: Progress) -> None:
    """Report, for a trusted publisher's artifact, what its manifest says that keeps others from checking it."""
    if statement.manifest.publisher != node.identity.own:
        for why in claims(statement.manifest).values():
            await report_unchecked(node, statement, why, progress)


async def report_unchecked(node: Node, statement: Statement, why: str, progress: Progress) -> None:
    """Report that an artifact is used although a part of it cannot be checked: as an event, and to the caller."""
    artifact = str(statement.artifact)
    node.events.add("uncheckable", artifact=artifact, reason=why)
    await progress(UncheckableEvent(artifact=artifact, reason=why))
