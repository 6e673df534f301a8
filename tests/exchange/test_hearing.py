"""Head records and audits that come with answers: from whom they are believed, and what they do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import Untrusted
from kvswap.core.ids import Cid
from kvswap.exchange.audits import audits_of, coverage, hear_audits, listed, refuse_if_failed
from kvswap.exchange.fetch import fetch
from kvswap.exchange.heads import freshness, heads_of, hear_heads
from kvswap.store import AuditRow
from kvswap.trust.audit import Audit, environment_of, read_audit, sign_audit
from kvswap.trust.head import make_head
from tests.exchange.test_fetch import world
from tests.support import Made, key, make_artifact, run

PEER = str(key(4000).peer_id)
PUBLISHER, OTHER, AUDITOR = key(), key(2), key(3)


def head(sequence: int, withdrawn: dict[str, str], signer: Any = PUBLISHER) -> bytes:
    return make_head(signer, sequence, int(time.time()) - 5, [], withdrawn).envelope


def audit(made: Made, verdict: str, auditor: Any = AUDITOR, environment: list[str] | None = None) -> bytes:
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
            assert "no head record" in freshness(b, made.manifest.publisher)
            hear_heads(b, [head(7, {made.id: "an error"})], PEER)
            assert b.store.artifacts() == [] and freshness(b, made.manifest.publisher) == ""
            hear_heads(b, [head(6, {}), head(8, {})], PEER)  # older; and newer, without it
            with pytest.raises(Untrusted, match="an error"):
                await fetch(b, Cid.parse(made.id))
            assert len(heads_of(b, [made.manifest.publisher])) == 1  # which it passes on

    run(body())


@pytest.mark.parametrize("when", ["fetched", "refused", "heard first"])
def test_no_flood_of_heads_undoes_a_withdrawal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Heard while the publisher was a stranger, it still holds when the user comes to trust it."""
    monkeypatch.setattr("kvswap.store.records._HEADS_KEPT", 64)

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            a, b = await w.node(), await w.node(trust=when == "fetched")
            w.give(a, made)
            if when == "fetched":
                await fetch(b, Cid.parse(made.id))
                b.policy.remove(made.manifest.publisher)
            elif when == "refused":
                with pytest.raises(Untrusted):
                    await fetch(b, Cid.parse(made.id))
            hear_heads(b, [head(7, {made.id: "an error"})], PEER)
            if when == "heard first":
                with pytest.raises(Untrusted):
                    await fetch(b, Cid.parse(made.id))
            for number in range(100):
                forged = make_head(key(5000 + number), 1, int(time.time()), [], {}).envelope
                hear_heads(b, [forged], str(key(4000 + number).peer_id))
            b.policy.add(made.manifest.publisher)
            with pytest.raises(Untrusted, match="an error"):
                await fetch(b, Cid.parse(made.id))

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
            hear_heads(b, [head(7, {made.id: "an error"})], PEER)
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
                (early,) = heads_of(a, [str(key(1000).peer_id)])
            hear_heads(b, [early], PEER)
            assert b.records.head(str(key(1000).peer_id)) is None
            (now,) = heads_of(a, [str(key(1000).peer_id)])
            hear_heads(b, [now], PEER)
            assert b.records.head(str(key(1000).peer_id)) is not None

    run(body())


def test_nobody_withdraws_what_another_published(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            w.give(b, made)
            hear_heads(b, [head(1, {made.id: "says who?"}, OTHER)], PEER)
            assert len(b.store.artifacts()) == 1
            assert (await fetch(b, Cid.parse(made.id))).statement.artifact == made.statement.artifact

    run(body())


def test_a_forged_head_is_a_lie_of_the_peer_that_passed_it_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            b = await w.node()
            forged = bytearray(head(1, {}))
            forged[-1] ^= 1
            hear_heads(b, [bytes(forged)], PEER)
            assert b.record(PEER).lies == 1 and b.records.head(str(PUBLISHER.peer_id)) is None

    run(body())


def test_a_successor_is_trusted_only_after_a_publisher_that_was(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            b = await w.node()
            for signer, follows in ((PUBLISHER, True), (OTHER, False)):
                after = key(50 + follows)
                signed = make_head(signer, 1, int(time.time()), [], {}, after)
                hear_heads(b, [signed.envelope], PEER)
                assert b.policy.policy.trusts(str(after.peer_id)) is follows

    run(body())


def test_audits_count_of_auditors_whom_one_trusts(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=40)
            b = await w.node()
            w.give(b, made)
            publisher = made.manifest.publisher
            hear_audits(b, [audit(made, "failed")], PEER, None)  # of a stranger
            hear_audits(b, [audit(made, "failed", PUBLISHER)], PEER, None)  # of the publisher about itself
            assert b.records.audits() == [] and b.policy.policy.caught(publisher) is None
            b.policy.add(str(AUDITOR.peer_id))
            hear_audits(b, [audit(made, "passed")], PEER, None)
            seen = coverage(b, made.id)
            assert seen is not None and seen.readers == 1 and seen.positions == 8
            hear_audits(b, [audit(made, "failed")], PEER, None)
            assert b.policy.policy.caught(publisher) is not None
            with pytest.raises(Untrusted, match="caught"):
                await fetch(b, Cid.parse(made.id))
            assert [row["peer"] for row in b.policy.caught()] == [publisher]

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
                node.policy.add(str(AUDITOR.peer_id))
            hear_audits(a, [old], PEER, None)
            assert a.policy.policy.caught(made.manifest.publisher) is None
            signed = read_audit(old)
            b.records.add_audit(
                AuditRow(signed.id, made.id, None, made.manifest.publisher, str(AUDITOR.peer_id), True, old)
            )
            refuse_if_failed(b, made.statement)  # kept from before: void
            assert audits_of(b, made.id, None) == []
            assert [(row["verdict"], row["void"]) for row in listed(b, None)] == [("failed", True)]
            hear_audits(b, [audit(made, "failed")], PEER, None)
            assert b.policy.policy.caught(made.manifest.publisher) is not None
            with pytest.raises(Untrusted, match="failed an audit"):
                refuse_if_failed(b, made.statement)
            assert len(audits_of(b, made.id, None)) == 1

    run(body())
