"""Head records and audits that come with answers: from whom they are believed, and what they do."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from kvswap.core import wire
from kvswap.core.errors import IntegrityError, Untrusted
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.discovery.resolve import resolve
from kvswap.exchange.fetch import fetch
from kvswap.exchange.verification.audits import audits_of, coverage, listed, receive_audits, refuse_if_failed
from kvswap.exchange.verification.outcomes import refuse_withheld
from kvswap.exchange.verification.status_records import (
    freshness,
    own_status_record,
    receive_status_records,
    status_records_of,
)
from kvswap.exchange.withdraw import withdraw
from kvswap.store import AuditRow, Outcome
from kvswap.trust import PolicyFile
from kvswap.trust import audit as audits
from kvswap.trust import status_record as heads
from kvswap.trust.audit import Audit, environment_of, read_audit, sign_audit
from kvswap.trust.envelopes import open_signed, sign
from kvswap.trust.levels import PROOF_RULES, RULES
from kvswap.trust.status_record import make_status_record
from tests.exchange.test_fetch import DOCUMENT, world
from tests.support import Ingested, key, make_artifact, run

PEER = str(key(4000).peer_id)
PUBLISHER, OTHER, AUDITOR = key(), key(2), key(3)


def head(sequence: int, withdrawn: dict[str, str], signer: Any = PUBLISHER) -> bytes:
    return make_status_record(signer, sequence, int(time.time()) - 5, [], withdrawn).envelope


def changed(envelope: bytes, signer: Any, kind: str, **fields: Any) -> bytes:
    """A statement with other fields, signed again: as a node of another version would."""
    payload = wire.parse(open_signed(envelope, kind)[1])
    return sign(wire.pack(payload | fields), signer, kind)


def audit(made: Ingested, verdict: str, auditor: Any = AUDITOR, environment: list[str] | None = None) -> bytes:
    fields = Audit(
        version=1,
        artifact=bytes(made.statement.artifact),
        publisher=made.manifest.publisher,
        auditor=str(auditor.peer_id),
        level=5,
        tokens=made.manifest.prefix.tokens,
        samples=8,
        seed=bytes(32),
        worst=1,
        verdict=verdict,
        why="",
        environment=environment_of() if environment is None else environment,
        issued=int(time.time()),
    )
    return sign_audit(fields, auditor).envelope


def test_a_withdrawn_artifact_goes_and_stays_away(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            a, b = await w.node(), await w.node()
            for node in (a, b):
                w.give(node, made)
            assert "no status record" in freshness(b, made.manifest.publisher)
            receive_status_records(b, [head(7, {made.id: "an error"})], PEER)
            assert b.store.artifacts() == [] and freshness(b, made.manifest.publisher) == ""
            receive_status_records(b, [head(6, {}), head(8, {})], PEER)  # older; and newer, without it
            with pytest.raises(Untrusted, match="an error"):
                await fetch(b, Cid.parse(made.id))
            assert len(status_records_of(b, [made.manifest.publisher])) == 1  # which it passes on

    run(body())


@pytest.mark.parametrize("when", ["fetched", "refused", "heard first"])
def test_no_flood_of_heads_undoes_a_withdrawal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Heard while the publisher was a stranger, it still holds when the user comes to trust it."""
    monkeypatch.setattr("kvswap.store.records._STATUS_RECORDS_KEPT", 64)

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            a, b = await w.node(), await w.node(trust=when == "fetched")
            w.give(a, made)
            if when == "fetched":
                await fetch(b, Cid.parse(made.id))
                b.trust.policy.remove(made.manifest.publisher)
            elif when == "refused":
                with pytest.raises(Untrusted):
                    await fetch(b, Cid.parse(made.id))
            receive_status_records(b, [head(7, {made.id: "an error"})], PEER)
            if when == "heard first":
                with pytest.raises(Untrusted):
                    await fetch(b, Cid.parse(made.id))
            for number in range(100):
                forged = make_status_record(key(5000 + number), 1, int(time.time()), [], {}).envelope
                receive_status_records(b, [forged], str(key(4000 + number).peer_id))
            b.trust.policy.add(made.manifest.publisher)
            with pytest.raises(Untrusted, match="an error"):
                await fetch(b, Cid.parse(made.id))

    run(body())


def test_what_strangers_offer_is_not_what_the_user_asked_for(tmp_path: Path) -> None:
    """Only the id that was typed, and what is used, fills the room of withdrawals that are never forgotten."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made, strange = make_artifact(tokens=40), make_artifact(key(3), tokens=24)
            reader, holder = await w.node(), await w.node()
            w.give(holder, made)
            w.give(holder, strange)  # of the same document

            def asked() -> set[str]:
                return {row["artifact"] for row in reader.trust.records._rows("SELECT artifact FROM asked")}

            await resolve(reader, DOCUMENT)
            assert asked() == set()
            with pytest.raises(Untrusted):
                await resolve(reader, Cid.parse(strange.id))
            assert asked() == {strange.id}
            await fetch(reader, DOCUMENT)
            assert asked() == {strange.id, made.id}

    run(body())


def test_a_withdrawal_that_comes_during_the_transfer_ends_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=100)
            a, b = await w.node(upload_bytes_per_second=40_000), await w.node()
            w.give(a, made)
            fetching = asyncio.create_task(fetch(b, Cid.parse(made.id)))
            while not b.store.used_bytes:
                await asyncio.sleep(0.005)
            receive_status_records(b, [head(7, {made.id: "an error"})], PEER)
            with pytest.raises(Untrusted, match="an error"):
                await fetching
            assert b.store.artifacts() == []
            with pytest.raises(Untrusted, match="an error"):
                await fetch(b, Cid.parse(made.id))

    run(body())


def test_a_head_from_the_future_is_signed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, signed while our clock was ahead: no reader would take it until then."""

    async def body() -> None:
        async with world(tmp_path) as w:
            a, b = await w.node(), await w.node()
            right = time.time
            with monkeypatch.context() as ahead:
                ahead.setattr(time, "time", lambda: right() + 10 * 365 * 86_400)
                w.give(a, make_artifact(key(1000), tokens=40))
                (early,) = status_records_of(a, [str(key(1000).peer_id)])
            receive_status_records(b, [early], PEER)
            assert b.trust.records.status_record(str(key(1000).peer_id)) is None
            (now,) = status_records_of(a, [str(key(1000).peer_id)])
            receive_status_records(b, [now], PEER)
            assert b.trust.records.status_record(str(key(1000).peer_id)) is not None

    run(body())


def test_nobody_withdraws_what_another_published(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            w.give(b, made)
            receive_status_records(b, [head(1, {made.id: "says who?"}, OTHER)], PEER)
            assert len(b.store.artifacts()) == 1
            assert (await fetch(b, Cid.parse(made.id))).statement.artifact == made.statement.artifact

    run(body())


def test_a_forged_head_is_a_lie_of_the_peer_that_passed_it_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            b = await w.node()
            forged = bytearray(head(1, {}))
            forged[-1] ^= 1
            receive_status_records(b, [bytes(forged)], PEER)
            assert b.peers.record(PEER).lies == 1 and b.trust.records.status_record(str(PUBLISHER.peer_id)) is None

    run(body())


def test_a_successor_is_trusted_only_after_a_publisher_that_was(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            b = await w.node()
            for signer, follows in ((PUBLISHER, True), (OTHER, False)):
                after = key(50 + follows)
                signed = make_status_record(signer, 1, int(time.time()), [], {}, after)
                receive_status_records(b, [signed.envelope], PEER)
                assert b.trust.policy.policy.trusts(str(after.peer_id)) is follows

    run(body())


def test_a_successor_that_the_user_removed_is_followed_no_more(tmp_path: Path) -> None:
    """However often the key of before names it again, also after a restart; until the user adds it."""

    async def body() -> None:
        async with world(tmp_path) as w:
            b, after = await w.node(), key(50)
            name = str(after.peer_id)

            def told(sequence: int) -> None:
                receive_status_records(
                    b, [make_status_record(PUBLISHER, sequence, int(time.time()), [], {}, after).envelope], PEER
                )

            told(1)
            assert b.trust.policy.policy.trusts(name) and b.trust.policy.remove(name)
            told(2)
            assert not b.trust.policy.policy.trusts(name) and b.trust.to_follow == {}
            b.trust.policy.policy = PolicyFile(tmp_path / "0" / "trust.json", b.identity.publisher.peer_id).policy
            told(3)
            assert not b.trust.policy.policy.trusts(name)
            assert not b.trust.policy.follow(name, "", str(PUBLISHER.peer_id))
            b.trust.policy.add(name)
            told(4)
            assert b.trust.policy.policy.trusts(name) and b.trust.policy.policy.removed == {}

    run(body())


def test_whom_the_user_removed_is_remembered_in_bounds_and_older_lists_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvswap.trust.policy._REMOVED_KEPT", 3)
    path, names = tmp_path / "trust.json", [str(key(60 + n).peer_id) for n in range(5)]
    policy = PolicyFile(path, key(9).peer_id)
    for name in names:
        policy.add(name)
        policy.remove(name)
    policy.ban(str(key(70).peer_id), "V2: why", "an artifact", "")
    for read in (policy, PolicyFile(path, key(9).peer_id)):
        assert list(read.policy.removed) == names[2:]
        assert [read.follow(name, "", "before") for name in names[2:]] == [False] * 3
    data = json.loads(path.read_bytes())
    del data["removed"]  # as kvswap wrote it before
    path.write_text(json.dumps(data))
    old = PolicyFile(path, key(9).peer_id)
    assert old.policy.removed == {} and old.policy.ban_of(str(key(70).peer_id)) is not None


def test_audits_count_of_auditors_whom_one_trusts(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            w.give(b, made)
            publisher = made.manifest.publisher
            receive_audits(b, [audit(made, "failed")], PEER, None)  # of a stranger
            receive_audits(b, [audit(made, "failed", PUBLISHER)], PEER, None)  # of the publisher about itself
            assert b.trust.records.audits() == [] and b.trust.policy.policy.ban_of(publisher) is None
            b.trust.policy.add(str(AUDITOR.peer_id))
            receive_audits(b, [audit(made, "passed")], PEER, None)
            seen = coverage(b, made.id)
            assert seen is not None and seen.readers == 1 and seen.positions == 8
            receive_audits(b, [audit(made, "failed")], PEER, None)
            assert b.trust.policy.policy.ban_of(publisher) is not None
            with pytest.raises(Untrusted, match="is banned"):
                await fetch(b, Cid.parse(made.id))
            assert [row["peer"] for row in b.trust.policy.bans()] == [publisher]

    run(body())


def test_failures_by_older_rules_count_for_nothing(tmp_path: Path) -> None:
    """They are neither heard nor acted on nor told; those by the rules of now are."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            old = audit(made, "failed", environment=["bfloat16", "cpu", "2"])  # as 2b501d5 signed them
            a, b = await w.node(), await w.node()
            for node in (a, b):
                w.give(node, made)
                node.trust.policy.add(str(AUDITOR.peer_id))
            receive_audits(a, [old], PEER, None)
            assert a.trust.policy.policy.ban_of(made.manifest.publisher) is None
            signed = read_audit(old)
            b.trust.records.add_audit(
                AuditRow(signed.id, made.id, None, made.manifest.publisher, str(AUDITOR.peer_id), True, old)
            )
            refuse_if_failed(b, made.statement)  # kept from before: void
            assert audits_of(b, made.id, None) == []
            assert [(row["verdict"], row["void"]) for row in listed(b, None)] == [("failed", True)]
            receive_audits(b, [audit(made, "failed")], PEER, None)
            assert b.trust.policy.policy.ban_of(made.manifest.publisher) is not None
            with pytest.raises(Untrusted, match="failed an audit"):
                refuse_if_failed(b, made.statement)
            assert len(audits_of(b, made.id, None)) == 1

    run(body())


def test_an_audit_of_tomorrow_counts_when_it_is_tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it is neither kept nor acted on, and nobody is called a liar: the clock that is wrong may be ours."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            w.give(b, made)
            b.trust.policy.add(str(AUDITOR.peer_id))
            now = int(time.time())
            tomorrow = [
                changed(audit(made, verdict), AUDITOR, audits.KIND, issued=now + 2 * LIMITS.clock_skew_seconds)
                for verdict in ("passed", "failed")
            ]
            receive_audits(b, tomorrow, PEER, None)
            assert b.trust.records.audits() == [] and coverage(b, made.id) is None
            assert b.trust.policy.policy.ban_of(made.manifest.publisher) is None and b.peers.record(PEER).lies == 0
            assert {e["event"] for e in b.events.recent()} >= {"audit_refused"}
            soon = changed(audit(made, "passed"), AUDITOR, audits.KIND, issued=now + LIMITS.clock_skew_seconds // 2)
            receive_audits(b, [soon], PEER, None)  # clocks are never the same
            assert coverage(b, made.id) is not None
            monkeypatch.setattr(time, "time", lambda: now + 3.0 * LIMITS.clock_skew_seconds)
            receive_audits(b, tomorrow, PEER, None)
            assert b.trust.policy.policy.ban_of(made.manifest.publisher) is not None

    run(body())


def test_a_failure_is_acted_on_however_many_passed(tmp_path: Path) -> None:
    """A trusted auditor has signed as many passes as are kept of one artifact."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            b.trust.policy.add(str(AUDITOR.peer_id))
            for number in range(70):
                passed = changed(audit(made, "passed"), AUDITOR, audits.KIND, issued=int(time.time()) - number)
                receive_audits(b, [passed], PEER, None)
            receive_audits(b, [audit(made, "failed")], PEER, None)
            assert b.trust.policy.policy.ban_of(made.manifest.publisher) is not None
            assert read_audit(audits_of(b, made.id, None)[0]).audit.failed
            with pytest.raises(Untrusted, match="failed an audit"):
                refuse_if_failed(b, made.statement)

    run(body())


def test_a_field_of_a_later_version_changes_nothing_of_what_is_known(tmp_path: Path) -> None:
    """Fields are added, so audits and heads that have more of them are obeyed all the same."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            a, b = await w.node(), await w.node()
            for node in (a, b):
                w.give(node, made)
                node.trust.policy.add(str(AUDITOR.peer_id))
            receive_audits(a, [changed(audit(made, "failed"), AUDITOR, audits.KIND, region="x")], PEER, None)
            assert a.trust.policy.policy.ban_of(made.manifest.publisher) is not None and a.peers.record(PEER).lies == 0
            receive_status_records(
                b, [changed(head(7, {made.id: "an error"}), PUBLISHER, heads.KIND, region={"x": 1})], PEER
            )
            assert b.store.artifacts() == [] and b.peers.record(PEER).lies == 0

    run(body())


@pytest.mark.parametrize("fields", [{"version": 2}, {"verdict": "perhaps"}, {"level": 9}, {"tokens": "many"}])
def test_who_passes_on_what_its_auditor_signed_is_no_liar(tmp_path: Path, fields: dict[str, Any]) -> None:
    """A statement of a later version is left out, and those behind it are heard."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            w.give(b, made)
            b.trust.policy.add(str(AUDITOR.peer_id))
            odd = changed(audit(made, "failed"), AUDITOR, audits.KIND, **fields)
            receive_audits(b, [odd, audit(made, "passed")], PEER, None)
            assert b.peers.record(PEER).lies == 0 and b.trust.policy.policy.ban_of(made.manifest.publisher) is None
            assert coverage(b, made.id) is not None
            newer = {} if "version" not in fields else fields
            if newer:
                receive_status_records(
                    b, [changed(head(1, {}), PUBLISHER, heads.KIND, **newer), head(7, {made.id: ""})], PEER
                )
                assert b.peers.record(PEER).lies == 0 and b.store.artifacts() == []

    run(body())


@pytest.mark.parametrize("how", ["damaged", "by another", "another kind", "no envelope"])
def test_a_forged_audit_is_a_lie_of_the_peer_that_passed_it_on(tmp_path: Path, how: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            right = audit(made, "failed")
            payload = open_signed(right, audits.KIND)[1]
            forged = {
                "damaged": right[:-1] + bytes([right[-1] ^ 1]),
                "by another": sign(payload, OTHER, audits.KIND),
                "another kind": head(1, {}),
                "no envelope": b"an audit",
            }[how]
            receive_audits(b, [forged], PEER, None)
            assert b.peers.record(PEER).lies == 1 and b.trust.records.audits() == []

    run(body())


@pytest.mark.parametrize("why", ["an error " * 40, "a\x1b]0;title\x07", "a\ud800"])
def test_a_reason_is_signed_once_however_it_is_worded(tmp_path: Path, why: str) -> None:
    """It is made fit to be signed, and what was signed is what it is compared with from then on."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(key(1000), tokens=40)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            await withdraw(a, Cid.parse(made.id), why)
            seen = {signed.record.sequence for _ in range(3) if (signed := own_status_record(a)) is not None}
            assert len(seen) == 1
            receive_status_records(b, status_records_of(a, [str(key(1000).peer_id)]), PEER)
            assert b.trust.records.withdrawn(made.id, made.manifest.publisher) and b.peers.record(PEER).lies == 0

    run(body())


@pytest.mark.parametrize("verdict", ["disputed", "wrong"])
def test_what_older_rules_withheld_is_judged_again(tmp_path: Path, verdict: Any) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node(trust=False)
            w.give(b, made)
            for rules in (PROOF_RULES - 1, *range(PROOF_RULES, RULES + 1)):
                b.trust.records.put_outcome(Outcome(made.id, made.manifest.publisher, verdict, rules, why="it differs"))
                if rules < PROOF_RULES:
                    refuse_withheld(b, made.statement)
                    continue
                with pytest.raises((IntegrityError, Untrusted), match="it differs"):
                    refuse_withheld(b, made.statement)

    run(body())
