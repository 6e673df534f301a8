"""The outcomes of verification, which decide whether an untrusted publisher's artifact may be used.

They hold until the rules change.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvswap.core.errors import IntegrityError, Untrusted
from kvswap.core.words import in_words
from kvswap.exchange.node.node import Node
from kvswap.exchange.node.standing import current, passed
from kvswap.store import Outcome
from kvswap.trust import Statement
from kvswap.trust.accusation import accuses, unusable
from kvswap.trust.levels import RULES, UNTRUSTED, Level, LevelReport, LevelResult

_WHOLE = frozenset(level for level in UNTRUSTED if level not in (Level.POLICY, Level.DIGESTS))


def is_own(node: Node, statement: Statement) -> bool:
    """Return True if this node signed the artifact, with the key that it has now."""
    return statement.manifest.publisher == node.identity.own


def verified_already(node: Node, statement: Statement) -> bool:
    """Return True if nothing is left to verify: its publisher is trusted, or all levels were passed here."""
    if node.trust.policy.policy.trusts(statement.manifest.publisher):
        return True
    return passed(node.trust.records.outcome(str(statement.artifact)))


def refuse_withheld(node: Node, statement: Statement) -> None:
    """Raise `IntegrityError` for what was found wrong here, `Untrusted` for what is disputed and not trusted."""
    artifact, publisher = str(statement.artifact), statement.manifest.publisher
    outcome = current(node.trust.records.outcome(artifact))
    if outcome is None:
        return
    if outcome.verdict == "wrong":
        raise IntegrityError(
            f"artifact {artifact} was found wrong on this node: {in_words(outcome.why)}",
            cause="it is not the model's own cache",
            hint=f"kvswap verify {artifact} --level 7"
            + (", or publish the document again" if is_own(node, statement) else ""),
            publisher=publisher,
        )
    if outcome.verdict == "disputed" and not node.trust.policy.policy.trusts(publisher):
        raise Untrusted(
            f"artifact {artifact} is disputed: {in_words(outcome.why)}",
            cause="it or what it differs from is wrong, and nobody has computed which",
            hint=f"kvswap verify {artifact} --level 7",
            disputed_with=list(outcome.others),
            publisher=publisher,
        )


def reasons_against(statement: Statement, report: LevelReport) -> dict[str, str]:
    """Return why an untrusted publisher's artifact may not be used, by level or field.

    V7 checks all that V5 samples, so V5 is no reason where V7 passed.
    """
    reasons = unusable(statement.manifest, report)
    if report.passed(Level.RECOMPUTE):
        reasons.pop(f"V{int(Level.SAMPLES)}", None)
    return reasons


def conclude(node: Node, statement: Statement, levels: Sequence[Level], report: LevelReport) -> None:
    """Remember how a whole verification of an untrusted publisher's artifact ended.

    One of a few levels changes nothing.

    A dispute is over when everything was computed again, or when a trusted publisher's cache is the same: not when
    whoever disagreed is away.
    """
    publisher, artifact = statement.manifest.publisher, str(statement.artifact)
    result, before = report.failed, current(node.trust.records.outcome(artifact))
    if node.trust.policy.policy.trusts(publisher):
        if before is not None and result is None and report.passed(Level.RECOMPUTE):
            node.trust.records.forget_outcome(
                artifact
            )  # it is right, whatever was found while its publisher was not trusted
        return
    if not set(levels) >= _WHOLE or (result is not None and result.level == Level.POLICY):
        return
    if any(accuses(s) for s in report.results):  # its publisher was banned, and the audit tells why
        node.trust.records.forget_outcome(artifact)
        return
    done = tuple(int(s.level) for s in report.results if s.verdict == "passed")
    if result is not None:
        verdict = "disputed" if result.level == Level.AGREEMENT else "wrong"
        others = result.figures.disputed_with or ()
        node.trust.records.put_outcome(Outcome(artifact, publisher, verdict, RULES, done, others, result.why))  # type: ignore[arg-type]
        return
    decided = report.passed(Level.RECOMPUTE) or _trusted_agree(report)
    if before is not None and before.verdict in ("disputed", "wrong") and not decided:
        return
    reasons = reasons_against(statement, report)
    if not reasons:
        node.trust.records.put_outcome(Outcome(artifact, publisher, "passed", RULES, done))
    elif before is None or before.verdict == "undecided":
        why = "; ".join(f"{where}: {why}" for where, why in reasons.items())
        node.trust.records.put_outcome(Outcome(artifact, publisher, "undecided", RULES, done, why=why))


def dispute(node: Node, statement: Statement, result: LevelResult) -> None:
    """Remember that an untrusted publisher's artifact failed V6, until `conclude` replaces that."""
    artifact, publisher = str(statement.artifact), statement.manifest.publisher
    others = result.figures.disputed_with or ()
    node.trust.records.put_outcome(Outcome(artifact, publisher, "disputed", RULES, others=others, why=result.why))


def _trusted_agree(report: LevelReport) -> bool:
    return any(_is_trusted_agreement(result) for result in report.results)


def _is_trusted_agreement(result: LevelResult) -> bool:
    return result.level == Level.AGREEMENT and result.verdict == "passed" and bool(result.figures.trusted)
