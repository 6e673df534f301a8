"""Who has it: found here and at peers, judged, in an order that helps, and nothing of it fetched or trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvswap.api import FindRequest
from kvswap.core.errors import NotFound, UsageError
from kvswap.core.ids import Cid
from kvswap.exchange import find as finding
from kvswap.exchange.find import find
from kvswap.exchange.publish import publish
from kvswap.net import messages
from tests.exchange.modelled import publisher_and_reader
from tests.exchange.peers import Peer, found, has_nothing, never
from tests.exchange.test_fetch import DOCUMENT, SlowModel, world
from tests.exchange.test_prefix import OTHER, TEXT
from tests.support import group, identity, key, make_artifact, run, seal_for

NOBODYS = "sha256:" + "ab" * 32


def ask(ref: str = DOCUMENT, **more: Any) -> FindRequest:
    return FindRequest(ref=ref, **more)


def test_it_says_who_has_it_and_keeps_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=100)
            reader, a, b = await w.node(trust=False), await w.node(), await w.node()
            w.give(a, made)
            w.give(b, made)
            result = await find(reader, DOCUMENT, ask())
            (one,) = result.artifacts
            assert (one.artifact, one.signed, one.here, one.document) == (made.id, True, None, DOCUMENT)
            assert {h.peer for h in one.holders} == {a.transport.peer, b.transport.peer}
            assert all(h.whole and h.bytes_per_second is None for h in one.holders)
            assert (one.tokens, one.wire_bytes, one.codec) == (100, made.manifest.wire_bytes, "planes")
            assert (one.label, one.model, one.dtype) == ("tiny", made.manifest.model.digest.hex(), "bfloat16")
            assert one.lossless and one.expires == made.manifest.life.expires and one.group is None
            assert not one.trusted and "does not trust" in str(one.problem)
            assert (result.peers, result.left_out, result.prefix) == (2, 0, None)
            assert reader.store.count() == 0 and reader.store.used_bytes == 0
            assert reader.trust.policy.rows() == []
            by_id = await find(reader, Cid.parse(made.id), ask(made.id))
            assert [a.artifact for a in by_id.artifacts] == [made.id]

    run(body())


def test_what_would_be_used_comes_first(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            trusted, other = make_artifact(tokens=60), make_artifact(key(7), tokens=30, seed=4)
            wrong_model = make_artifact(tokens=20, seed=5, model=identity("another"))
            reader, a = await w.node(model=SlowModel()), await w.node()
            for made in (other, wrong_model, trusted):
                w.give(a, made)
            w.give(reader, trusted, {trusted.manifest.chunks[0].id})
            result = await find(reader, DOCUMENT, ask())
            assert [x.artifact for x in result.artifacts] == [trusted.id, wrong_model.id, other.id]
            assert result.artifacts[0].problem is None and result.artifacts[0].here == "partial"
            assert "model" in str(result.artifacts[1].problem)
            w.give(reader, trusted)
            assert (await find(reader, DOCUMENT, ask())).artifacts[0].here == "complete"

    run(body())


def test_model_and_publisher_leave_others_out(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            one, two = make_artifact(tokens=60), make_artifact(key(7), tokens=30, model=identity("another"))
            reader, a = await w.node(), await w.node()
            w.give(a, one)
            w.give(a, two)

            async def names(**more: Any) -> tuple[list[str], int]:
                result = await find(reader, DOCUMENT, ask(**more))
                return [x.artifact for x in result.artifacts], result.left_out

            assert await names(publisher=two.manifest.publisher) == ([two.id], 1)
            assert await names(model="another") == ([two.id], 1)
            assert await names(model="tiny") == ([one.id], 1)
            digits = two.manifest.model.digest.hex()
            assert await names(model=digits[:8].upper()) == ([two.id], 1)
            assert await names(model="/somewhere/tiny/") == ([one.id], 1)
            with pytest.raises(NotFound, match="2 artifact"):
                await names(model=digits[:7])
            with pytest.raises(NotFound, match="none is of the model and publisher"):
                await names(model="tiny", publisher=str(key(99).peer_id))
            with pytest.raises(UsageError):
                await names(publisher="nobody")
            with pytest.raises(UsageError):
                await names(model=" ")

    run(body())


def test_members_find_what_is_sealed_and_others_do_not(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            team = group()
            reader, outsider, a = await w.node(), await w.node(), await w.node()
            for member in (reader, a):
                member.trust.groups.add(team)
            made = seal_for(make_artifact(tokens=40), team)
            w.give(a, made)
            (one,) = (await find(reader, DOCUMENT, ask(group="team"))).artifacts
            assert (one.artifact, one.group, one.document, one.tokens) == (made.id, "team", DOCUMENT, 40)
            with pytest.raises(NotFound):
                await find(outsider, DOCUMENT, ask())
            (told,) = (await find(outsider, Cid.parse(made.id), ask(made.id))).artifacts
            assert not told.signed and told.label is None and "sealed" in str(told.problem)

    run(body())


def test_a_peer_that_lies_or_gives_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it offers is said to be its word; an artifact of another document is left out."""
    monkeypatch.setattr(finding, "_MANIFEST_SECONDS", 0.5)
    another = make_artifact(tokens=40, text=b"another document", seed=3)

    async def offering(request: messages.Request) -> Any:
        if isinstance(request, messages.Find):
            of_another = found(2, artifact=another.id, envelope=another.statement.envelope)
            return messages.FindReply("test", str(key(7).peer_id), [found(1), of_another], [])
        if isinstance(request, messages.GetManifest):
            await never()
        return await has_nothing(request)

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node()
            peer = await Peer(w.network, 4000, offering).start(reader)
            (one,) = (await find(reader, DOCUMENT, ask())).artifacts
            assert (one.artifact, one.signed, one.tokens) == (found(1).artifact, False, 1000)
            assert [h.peer for h in one.holders] == [peer.id] and one.problem == "nobody gave its manifest in time"

    run(body())


def test_where_nobody_has_it_that_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            alone = await w.node(p2p=False)
            with pytest.raises(NotFound, match="nobody has") as raised:
                await find(alone, DOCUMENT, ask())
            reader, _ = await w.node(), await w.node()
            with pytest.raises(NotFound) as raised:
                await find(reader, DOCUMENT, ask(text="a document for tests"))  # no model to read it with
            assert "none of 2 connected peers" in raised.value.cause

    run(body())


def test_of_a_text_that_nobody_has_the_longest_prefix_is_found(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            made = await publish(a, TEXT.encode())
            result = await find(b, NOBODYS, ask(NOBODYS, text=OTHER))
            prefix = result.prefix
            assert result.artifacts == [] and prefix is not None
            assert (prefix.artifact, prefix.peers) == (made["artifact"], [a.transport.peer])
            assert 64 <= prefix.tokens < prefix.of and not prefix.here
            assert b.store.count() == 0
            with pytest.raises(NotFound):
                await find(b, NOBODYS, ask(NOBODYS, text=OTHER, publisher=str(key(9).peer_id)))
            mine = await find(a, NOBODYS, ask(NOBODYS, text=OTHER))
            assert mine.prefix is not None and mine.prefix.here

    run(body())
