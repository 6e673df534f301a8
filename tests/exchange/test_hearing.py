"""Head records and audits that come with answers: from whom they are believed, and what they do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import Untrusted
from kvswap.core.ids import Cid
from kvswap.exchange.audits import coverage, hear_audits
from kvswap.exchange.fetch import fetch
from kvswap.exchange.heads import freshness, heads_of, hear_heads
from kvswap.trust.audit import Audit, sign_audit
from kvswap.trust.head import make_head
from tests.exchange.test_fetch import world
from tests.support import Made, key, make_artifact, run

PEER = str(key(4000).peer_id)
PUBLISHER, OTHER, AUDITOR = key(), key(2), key(3)


def head(sequence: int, withdrawn: dict[str, str], signer: Any = PUBLISHER) -> bytes:
    return make_head(signer, sequence, int(time.time()) - 5, [], withdrawn).envelope


def audit(made: Made, verdict: str, auditor: Any = AUDITOR) -> bytes:
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
        environment=[],
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
