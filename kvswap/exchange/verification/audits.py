"""Audits: signed from what was verified here, given to readers, accepted from auditors whom this node trusts."""

from __future__ import annotations

import time
from collections.abc import Iterable

from kvswap.api.trust import AuditFinding
from kvswap.core.errors import Untrusted
from kvswap.core.limits import LIMITS
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node.node import Node
from kvswap.exchange.node.standing import void
from kvswap.exchange.verification.received import kept_for_later, verified_statements
from kvswap.store import AuditRow
from kvswap.trust import Statement
from kvswap.trust.audit import (
    FAILED,
    KIND,
    PASSED,
    Audit,
    Coverage,
    SignedAudit,
    covered,
    environment_of,
    read_audit,
    sign_audit,
)
from kvswap.trust.levels import Level, LevelResult


def record(
    node: Node, statement: Statement, choice: ModelChoice, result: LevelResult, samples: int, seed: bytes
) -> SignedAudit:
    """Sign an audit of what a level that compares with the model found, and keep it."""
    manifest = statement.manifest
    sampled = result.level == Level.SAMPLES
    signed = sign_audit(
        Audit(
            version=1,
            artifact=bytes(statement.artifact),
            publisher=manifest.publisher,
            auditor=node.identity.own,
            level=int(result.level),
            tokens=manifest.prefix.tokens,
            samples=min(samples, manifest.prefix.tokens) if sampled else 0,
            seed=seed,
            worst=result.figures.worst or 0,
            verdict=FAILED if result.verdict == "failed" else PASSED,
            why=result.why,
            environment=environment_of(choice.dtype, choice.device, str(choice.threads)),
            issued=int(time.time()),
        ),
        node.identity.publisher,
    )
    node.trust.records.add_audit(_row(signed, statement.reference))
    return signed


def _row(signed: SignedAudit, document: str | None) -> AuditRow:
    audit = signed.audit
    return AuditRow(signed.id, str(audit.cid), document, audit.publisher, audit.auditor, audit.failed, signed.envelope)


def audits_of(node: Node, artifact: str | None, document: str | None) -> list[bytes]:
    """Return the audits to send to a reader of an artifact or a document: failures first, none that is void."""
    rows = node.trust.records.audits(artifact=artifact, document=document)
    return [row.envelope for row in rows if not void(row)][: LIMITS.audits_sent]


def receive_audits(node: Node, envelopes: Iterable[bytes], peer: str, document: str | None) -> None:
    """Keep the audits by trusted auditors that came with a peer's answer; all others count for nothing.

    Nor do failures by older rules, nor what is issued in the future: it counts when it comes again in its time, and
    is held against nobody, since the clock that is wrong may be ours.
    A publisher that a trusted auditor banned is banned here as well.
    """
    for signed in verified_statements(node, peer, KIND, envelopes, LIMITS.audits_sent, read_audit):
        audit = signed.audit
        if audit.void or audit.auditor == audit.publisher or not node.trust.policy.policy.trusts(audit.auditor):
            continue
        if audit.is_early(time.time()):
            why = "it is issued in the future: a clock is wrong"
            node.events.add("audit_refused", auditor=audit.auditor, peer=peer, reason=why)
            continue
        if audit.auditor != node.identity.own:
            with kept_for_later(node):
                take(node, signed, document)


def take(node: Node, signed: SignedAudit, document: str | None) -> None:
    """Act on an audit by a trusted auditor, and keep it, once.

    Where that cannot be written, it counts all the same, and is taken again later (`pending_writes.write_pending`).
    """
    row, audit = _row(signed, document), signed.audit
    if not node.trust.records.takes_audit(row):
        node.trust.records.unwritten.drop_audit(row.id)
        return
    try:
        if audit.failed:
            ban_publisher(node, audit.publisher, str(audit.cid), audit.why, signed.id, by=audit.auditor)
        node.trust.records.add_audit(row)
    except Exception:
        node.trust.records.remember_audit(row)
        raise


def ban_publisher(node: Node, publisher: str, artifact: str, why: str, evidence: str, *, by: str) -> None:
    """Ban a publisher that a check proved to be wrong: nothing of it is used any more, and the evidence is kept.

    Nothing happens for this node's own key, or for one that is banned already.
    """
    if publisher == node.identity.own or node.trust.policy.policy.ban_of(publisher) is not None:
        return
    node.trust.policy.ban(publisher, why, artifact, evidence)
    node.counters.publishers_caught += 1
    node.events.add("publisher_caught", publisher=publisher, artifact=artifact, reason=why, audit=evidence, by=by)


def coverage(node: Node, artifact: str) -> Coverage | None:
    """Sum up what this node and the auditors it trusts have checked of an artifact.

    None where nobody checked layers.
    """
    rows = node.trust.records.audits(artifact=artifact)
    return covered(read_audit(row.envelope).audit for row in rows if node.trust.policy.policy.trusts(row.auditor))


def refuse_if_failed(node: Node, statement: Statement) -> None:
    """Raise `Untrusted` for an artifact that a trusted auditor, or this node, found wrong."""
    artifact = str(statement.artifact)
    row = node.trust.standings.failed([artifact]).get(artifact)
    if row is not None:
        raise Untrusted(
            f"artifact {artifact} failed an audit by {row.auditor}: {read_audit(row.envelope).audit.why}",
            cause=f"audit {row.id}",
            hint=f"kvswap trust audits {row.publisher}",
        )


def listed(node: Node, publisher: str | None) -> list[AuditFinding]:
    """List the audits that are kept, all or those about one publisher."""
    return [
        AuditFinding(
            audit=row.id,
            artifact=row.artifact,
            publisher=row.publisher,
            auditor=row.auditor,
            level=f"V{(audit := read_audit(row.envelope).audit).level}",
            verdict=audit.verdict,
            rules=audit.rules,
            void=audit.void,
            samples=audit.samples or audit.tokens,
            tokens=audit.tokens,
            worst=audit.worst / 1e6,
            why=audit.why,
            issued=audit.issued,
        )
        for row in node.trust.records.audits(publisher=publisher)
    ]
