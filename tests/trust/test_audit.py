from __future__ import annotations

import msgspec
import pytest

from kvswap.core import wire
from kvswap.core.errors import IntegrityError, MalformedManifest
from kvswap.core.ids import Cid
from kvswap.trust.audit import KIND, Audit, covered, environment_of, read_audit, sign_audit
from kvswap.trust.envelopes import sign
from kvswap.trust.levels import PROOF_RULES, Level
from tests.support import key

AUDITOR = key(5)


def audit(**changes: object) -> Audit:
    made = Audit(
        version=1,
        artifact=bytes(Cid.of(b"an artifact")),
        publisher=str(key(6).peer_id),
        auditor=str(AUDITOR.peer_id),
        level=int(Level.SAMPLES),
        tokens=1024,
        samples=32,
        seed=bytes(32),
        worst=1_500_000,
        verdict="passed",
        why="",
        environment=["bfloat16", "cpu"],
        issued=1_700_000_000,
    )
    return msgspec.structs.replace(made, **changes)


def test_what_is_signed_comes_back_with_its_positions() -> None:
    signed = read_audit(sign_audit(audit(), AUDITOR).envelope)
    assert signed.audit == audit() and len(signed.audit.positions) == 32


@pytest.mark.parametrize(
    "changes",
    [{"version": 2}, {"verdict": "perhaps"}, {"level": 4}, {"samples": 5000}, {"artifact": b"x" * 36}],
)
def test_what_is_no_audit_is_refused(changes: dict[str, object]) -> None:
    payload = wire.pack(wire.plain(audit(**changes)))
    with pytest.raises(MalformedManifest):
        read_audit(sign(payload, AUDITOR, KIND))


def test_an_audit_names_the_rules_it_was_made_by() -> None:
    """In its environment, where readers of before expect any text."""
    old, new = audit(verdict="failed"), audit(verdict="failed", environment=environment_of("bfloat16", "cpu"))
    assert (old.rules, old.void) == (1, True)
    assert (new.rules, new.void) == (PROOF_RULES, False)
    assert not audit().void  # what passed stays so
    for odd in ("rules ", "rules x", "rules -1", "rules \u0663"):
        assert audit(environment=[odd]).rules == 1


def test_nobody_signs_for_another_auditor() -> None:
    with pytest.raises(IntegrityError, match="auditor"):
        read_audit(sign(wire.pack(wire.plain(audit())), key(7), KIND))


def test_an_audit_is_no_manifest_and_no_head() -> None:
    from kvswap.trust import read_statement
    from kvswap.trust.status_record import read_status_record

    envelope = sign_audit(audit(), AUDITOR).envelope
    for reader in (read_statement, read_status_record):
        with pytest.raises(MalformedManifest, match="payload type"):
            reader(envelope)


def test_coverage_counts_positions_of_those_that_passed() -> None:
    two = [audit(), audit(seed=b"\1" * 32), audit(seed=b"\2" * 32, verdict="failed")]
    seen = covered(two)
    assert seen is not None and seen.readers == 2 and 32 < seen.positions <= 64
    assert seen.span == 1.0 and seen.one == pytest.approx(1 - (1 - 1 / 32) ** 2)
    whole = covered([audit(level=int(Level.RECOMPUTE), samples=0)])
    assert whole is not None and whole.positions == 1024 and whole.one == 1.0
    assert covered([]) is None
