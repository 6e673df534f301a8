"""From a reference to what may be used: in which order it is looked for, and which refusal is told when nothing is left."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.artifact.manifest import Divergence
from kvswap.core.errors import Incompatible, IntegrityError, NotFound, Untrusted
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.discovery import lookup as finding
from kvswap.exchange.discovery import resolve as resolving
from kvswap.exchange.discovery.resolve import Wanted, judge_envelope, own_model, resolve
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.request import STRICT, Terms
from kvswap.exchange.verification.use import use
from kvswap.net import PeerAddress, messages
from tests.exchange.peers import Peer, found, has_nothing
from tests.exchange.test_fetch import DOCUMENT, SlowModel, world
from tests.support import group, identity, key, make_artifact, run, seal_for

FIRST_USE = Terms(trust_on_first_use=True)


def ids(usable: Any) -> set[str]:
    return {str(one.statement.artifact) for one in usable}


def test_what_is_whole_here_comes_before_anybody_is_asked(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=30)
            reader = await w.node()
            peer = await Peer(w.network, 4000, has_nothing).start(reader)
            w.give(reader, made, {made.manifest.chunks[0].id})
            with pytest.raises(NotFound):
                await resolve(reader, DOCUMENT)  # a part of it is nothing
            asked = len(peer.heard)
            w.give(reader, made)
            (usable,) = await resolve(reader, DOCUMENT)
            assert usable.local and usable.peers == () and ids([usable]) == {made.id}
            (by_id,) = await resolve(reader, Cid.parse(made.id))
            assert by_id.local and len(peer.heard) == asked > 0

    run(body())


def test_three_artifacts_of_a_document_are_looked_at_with_everybody_who_has_each(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            every = [make_artifact(tokens=30, seed=seed) for seed in range(5)]
            a, b, reader = await w.node(), await w.node(), await w.node()
            for made in every:
                w.give(a, made)
            w.give(b, every[0])
            usable = await resolve(reader, DOCUMENT)
            assert len(usable) == 3 and ids(usable) < {made.id for made in every}
            (one,) = await resolve(reader, Cid.parse(every[0].id))
            assert set(one.peers) == {a.transport.peer, b.transport.peer} and not one.local  # type: ignore[union-attr]

    run(body())


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a stranger's": ({"signer": key(77)}, Untrusted, "allow-list|trust"),
    "of another model": ({"model": identity("another")}, Incompatible, "model"),
    "of another dtype": ({"dtype": "float32"}, Incompatible, "computes in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_when_nothing_else_is_left(tmp_path: Path, name: str) -> None:
    changes, error, words = REFUSED[name]

    async def body() -> None:
        async with world(tmp_path) as w:
            wrong = make_artifact(**({"tokens": 30, "model": identity()} | changes))
            holder, reader = await w.node(), await w.node(model=SlowModel())
            w.give(holder, wrong)
            with pytest.raises(error, match=words):
                await resolve(reader, DOCUMENT)
            with pytest.raises(error, match=words):
                await resolve(reader, Cid.parse(wrong.id))
            right = make_artifact(tokens=30, model=identity(), seed=9)
            w.give(holder, right)
            assert ids(await resolve(reader, DOCUMENT)) == {right.id}

    run(body())


def test_of_several_refusals_the_one_that_the_user_can_act_on_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            holder, reader = await w.node(), await w.node(model=SlowModel())
            w.give(holder, make_artifact(tokens=30, model=identity("another")))
            with pytest.raises(Incompatible):
                await resolve(reader, DOCUMENT)
            w.give(holder, make_artifact(key(77), tokens=30, model=identity()))
            with pytest.raises(Untrusted):
                await resolve(reader, DOCUMENT)

    run(body())


def test_an_inexact_one_is_taken_by_who_says_so(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            told = Divergence(steps=32, equal=15, first=3, kl=1000)
            made = make_artifact(tokens=30, codec="int8", divergence=told)
            reader = await w.node()
            w.give(reader, made)
            with pytest.raises(Incompatible, match="15 of 32") as caught:
                await resolve(reader, DOCUMENT)
            assert "--allow-lossy" in caught.value.hint  # type: ignore[operator]
            assert ids(await resolve(reader, DOCUMENT, msgspec.structs.replace(STRICT, allow_lossy=True))) == {made.id}

    run(body())


def test_who_gives_another_artifact_than_was_asked_for_lies(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            other = make_artifact(tokens=30, text=b"another document")

            async def lying(request: messages.Request) -> Any:
                if isinstance(request, messages.Find):
                    row = found(0, artifact=other.id, publisher=other.manifest.publisher)
                    return messages.FindReply("test", other.manifest.publisher, [row], [])
                if isinstance(request, messages.GetManifest):
                    return other.statement.envelope
                return await has_nothing(request)

            reader = await w.node()
            await Peer(w.network, 4000, lying).start(reader)
            with pytest.raises(IntegrityError, match="is not of"):
                await resolve(reader, DOCUMENT)

    run(body())


def test_what_nobody_offers_is_told_with_who_was_asked(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            alone = await w.node()
            with pytest.raises(NotFound) as caught:
                await resolve(alone, DOCUMENT)
            assert caught.value.cause == "no peer is connected" and caught.value.details["peers"] == 0
            await w.node()
            with pytest.raises(NotFound) as caught:
                await resolve(alone, DOCUMENT)
            assert "none of 1 connected peers" in str(caught.value.cause) and caught.value.details["peers"] == 1

    run(body())


def test_a_young_node_waits_for_peers_who_are_still_on_their_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "LIMITS", replace(LIMITS, lookup_seconds=100.0))

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=30)
            reader, holder = await w.node(), await w.node()
            w.give(holder, made)
            await holder.transport.disconnect(reader.transport.peer)  # type: ignore[union-attr]
            with pytest.raises(NotFound):
                await resolve(reader, DOCUMENT)  # at once: it has been up for long
            reader.counters.started = time.time()
            looking = asyncio.create_task(resolve(reader, DOCUMENT))
            await asyncio.sleep(2 * finding._PATIENCE_SECONDS)
            assert not looking.done()
            await holder.transport.connect(PeerAddress(reader.transport.peer))  # type: ignore[union-attr]
            assert ids(await looking) == {made.id}

    run(body())


def test_a_groups_document_is_found_by_its_members_alone(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            team = group()
            sealed = seal_for(make_artifact(tokens=30), team)
            holder, reader = await w.node(), await w.node()
            holder.trust.groups.add(team)
            w.give(holder, sealed)
            with pytest.raises(NotFound):
                await resolve(reader, DOCUMENT)
            with pytest.raises(NotFound):
                await resolve(reader, DOCUMENT, msgspec.structs.replace(STRICT, group="team"))  # it is in no such group
            reader.trust.groups.add(team)
            for terms in (STRICT, msgspec.structs.replace(STRICT, group="team")):
                assert ids(await resolve(reader, DOCUMENT, terms)) == {sealed.id}

    run(body())


def test_first_use_trusts_whoever_is_used_and_nobody_before(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=30)
            reader = await w.node(trust=False)
            w.give(reader, made)
            with pytest.raises(Untrusted):
                await resolve(reader, DOCUMENT)
            (usable,) = await resolve(reader, DOCUMENT, FIRST_USE)
            assert reader.trust.policy.rows() == []
            await use(reader, usable.statement, STRICT)
            assert reader.trust.policy.rows() == []
            for _ in range(2):
                await use(reader, usable.statement, FIRST_USE)
            assert [row["how"] for row in reader.trust.policy.rows()] == ["first-use"]
            assert [e["event"] for e in reader.events.recent()].count("trusted") == 1

    run(body())


def test_without_a_model_compatibility_is_not_judged(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=30, model=identity("another"))
            without, having = await w.node(), await w.node(model=SlowModel())
            assert await own_model(without.model) is None
            choice = await own_model(having.model)
            assert isinstance(choice, ModelChoice)
            expired = make_artifact(tokens=30, now=1_000_000, lifetime=10)
            with pytest.raises(Untrusted, match="expired"):
                await judge_envelope(without, expired.statement.envelope, None)
            wanted = Wanted.of(choice)
            assert (wanted.model, wanted.dtype) == (identity().digest, "bfloat16")
            assert (await judge_envelope(without, made.statement.envelope, None)).artifact == made.statement.artifact
            with pytest.raises(Incompatible):
                await judge_envelope(having, made.statement.envelope, wanted)

    run(body())
