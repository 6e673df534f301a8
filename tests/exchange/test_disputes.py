"""What a climb came to is what is remembered: disputes, outcomes, and what this node finds wrong of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from kvswap.api import AskRequest
from kvswap.artifact.fingerprint import _signs, fingerprint
from kvswap.artifact.layout import FINGERPRINT_TOKENS
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import IntegrityError, KvswapError, Untrusted
from kvswap.core.ids import Cid, document_digest
from kvswap.exchange import Node
from kvswap.exchange.ask import answer
from kvswap.exchange.discovery.lookup import find
from kvswap.exchange.fetch import fetch
from kvswap.exchange.model_port import Wanted
from kvswap.exchange.prefix import longest_cached_prefix
from kvswap.exchange.publish import publish
from kvswap.exchange.request import LookupTerms, Terms
from kvswap.exchange.verification.status_records import own_status_record
from kvswap.exchange.verify import verify_artifact
from kvswap.model.recompute import differences
from kvswap.net import messages
from kvswap.trust.agreement import compare
from kvswap.trust.levels import RULES, up_to
from kvswap.trust.noise import MARGIN, Noise
from kvswap.worker.messages import VerifyJob
from kvswap.worker.noise import measure
from tests.attacks import kit
from tests.attacks.kit import Scene, forge
from tests.exchange.modelled import RealModel
from tests.exchange.test_fetch import World, resigned, world
from tests.support import DOCUMENT, Ingested, key, run

pytestmark = [pytest.mark.faults]
TEXT = DOCUMENT.read_text()[:700]
REFERENCE = document_digest(TEXT.encode())
HONEST, LIAR = key(301), key(302)
STRANGERS = Terms(allow_untrusted=True, force=True, samples=1)
FORCED = Terms(force=True)


@pytest.fixture(scope="module")
def scene(tiny_models: dict[str, Path]) -> Scene:
    from kvswap.model.load import load_model

    kit.NOW = int(time.time()) - 10
    loaded = load_model(tiny_models["llama"], "tiny", "float32")
    ids = loaded.tokenize(TEXT)
    return Scene(loaded, TEXT, ids, loaded.tokenize(DOCUMENT.read_text()[5000:8000])[: len(ids)], 64)


@pytest.fixture(scope="module")
def made(scene: Scene) -> dict[str, Ingested]:
    """The right cache, and one whose last position is poisoned: a look at one position rarely finds that."""
    last = len(scene.ids) - 1
    lie = scene.pasted(last, last + 1, scene.elsewhere, first_layer=1)
    return {"honest": forge(scene, scene.right, signer=HONEST), "lie": forge(scene, lie, signer=LIAR)}


def unlucky(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose samples miss the poisoned position."""
    monkeypatch.setattr("kvswap.exchange.verify.new_seed", lambda: bytes(32))


@asynccontextmanager
async def reading(
    tmp_path: Path, model: Path, *held: Ingested, dtype: str = "float32"
) -> AsyncIterator[tuple[World, Node, RealModel]]:
    """A reader with a model, connected to a peer for each of these artifacts."""
    async with world(tmp_path) as w:
        for artifact in held:
            w.give(await w.node(trust=False), artifact)
        port = RealModel(model, dtype=dtype)
        yield w, await w.node(trust=False, model=port, block_tokens=64), port


def caught(node: Node) -> set[str]:
    return {row["peer"] for row in node.trust.policy.bans()}


WORDINGS: dict[str, Callable[[Manifest], dict[str, Any]]] = {
    "as it is": lambda m: {},
    "another label": lambda m: {"model": msgspec.structs.replace(m.model, label="llama")},
    "other parameters": lambda m: {"model": msgspec.structs.replace(m.model, parameters=7)},
    "another text of rope": lambda m: {"layout": msgspec.structs.replace(m.layout, rope='{"rope_theta": 1.0}')},
}


@pytest.mark.parametrize("wording", WORDINGS)
def test_a_lie_that_an_honest_stranger_contradicts_is_caught_and_gone(
    tmp_path: Path,
    tiny_models: dict[str, Path],
    made: dict[str, Ingested],
    monkeypatch: pytest.MonkeyPatch,
    wording: str,
) -> None:
    async def body() -> None:
        unlucky(monkeypatch)
        lie = resigned(made["lie"], LIAR, **WORDINGS[wording](made["lie"].manifest))
        async with reading(tmp_path, tiny_models["llama"], lie, made["honest"]) as (_, node, _port):
            with pytest.raises(IntegrityError, match="full recomputation"):
                await fetch(node, Cid.parse(lie.id), STRANGERS, text=TEXT)
            assert caught(node) == {str(LIAR.peer_id)} and node.store.artifacts() == []
            for terms in (STRANGERS, FORCED):
                with pytest.raises(Untrusted, match="is banned"):
                    await fetch(node, Cid.parse(lie.id), terms, text=TEXT)
            done = await fetch(node, REFERENCE, STRANGERS, text=TEXT)
            assert str(done.statement.artifact) == made["honest"].id

    run(body())


def nudged(scene: Scene, noise: Noise) -> list[LayerTensors]:
    """A cache that V7 lets pass: some values are the next of bfloat16, on the side of the fingerprint's public signs."""

    def moved(part: float) -> list[LayerTensors]:
        out, random = scene.copy(), torch.Generator().manual_seed(1)
        for layer, held in enumerate(out):
            for kind, tensor in enumerate((held.k, held.v)):
                heads, tokens, dim = tensor.shape
                signs = _signs(layer, kind, heads, dim).repeat(1, -(-tokens // FINGERPRINT_TOKENS), 1)[:, :tokens]
                some = torch.rand(tensor.shape, generator=random) < part
                next_to = torch.nextafter(tensor, torch.where(signs > 0, torch.inf, -torch.inf).to(tensor.dtype))
                tensor.copy_(torch.where(some, next_to, tensor))
        return out

    part = 1.0
    while noise.recompute.score(differences(moved(part), scene.right).numpy()).worst > 0.8 * MARGIN:
        part *= 0.7
    return moved(part)


def test_who_nudges_a_right_cache_gets_no_honest_stranger_condemned(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    """The fingerprint that accuses is that of what this reader computed, not of what passed V7."""

    from kvswap.model.load import load_model

    kit.NOW = int(time.time()) - 10

    async def body() -> None:
        loaded = load_model(tiny_models["llama"], "tiny", "bfloat16")
        scene = Scene(loaded, TEXT, loaded.tokenize(TEXT), [], 64)
        noise = Noise.of(measure(loaded, lambda: None).record)
        tensors = nudged(scene, noise)
        far = compare(
            fingerprint(tensors), {"honest": fingerprint(scene.right)}, noise.fingerprints, (2 * len(tensors), 0)
        )
        assert far.scores["honest"] > 2 * MARGIN
        invalid_senders, honest = forge(scene, tensors, signer=LIAR), forge(scene, scene.right, signer=HONEST)
        async with reading(tmp_path, tiny_models["llama"], invalid_senders, honest, dtype="bfloat16") as (
            _,
            node,
            _port,
        ):
            with pytest.raises(IntegrityError, match=r"fingerprints of other publishers\): its fingerprint"):
                await fetch(node, Cid.parse(invalid_senders.id), STRANGERS, text=TEXT)
            assert caught(node) == {str(LIAR.peer_id)}
            right = await fetch(node, Cid.parse(honest.id), STRANGERS, text=TEXT)
            assert {"V3", "V5"} <= set(right.verification["passed"])
            assert caught(node) == {str(LIAR.peer_id)}

    run(body())


@pytest.mark.parametrize("text", [TEXT, None], ids=["text", "digest"])
def test_no_number_of_strangers_outvotes_a_right_cache(
    tmp_path: Path, tiny_models: dict[str, Path], made: dict[str, Ingested], text: str | None
) -> None:
    """Everything is computed again, and those that signed another fingerprint are the ones that lied."""

    async def body() -> None:
        sybils = [resigned(made["lie"], key(310 + number)) for number in range(3)]
        numerics = msgspec.structs.replace(made["lie"].manifest.numerics, isa="AVX9")
        elsewhere = resigned(made["lie"], key(320), numerics=numerics)  # of it nobody here can say that it lied
        async with reading(tmp_path, tiny_models["llama"], made["honest"], *sybils, elsewhere) as (_, node, port):
            done = await fetch(node, Cid.parse(made["honest"].id), STRANGERS, text=text)
            said = done.verification
            assert {"V3", "V5", "V6", "V7"} <= set(said["passed"]) and said["trusted"] is False
            assert caught(node) == {s.manifest.publisher for s in sybils}
            outcome = node.trust.records.outcome(made["honest"].id)
            assert outcome is not None and outcome.verdict == "passed" and 7 in outcome.levels
            before = port.done["verify"]
            again = await fetch(node, Cid.parse(made["honest"].id), FORCED)
            assert port.done["verify"] == before and again.verification["trusted"] is False
            assert "trusted" not in again.verification["unchecked"].get("V4", "").replace("not trusted", "")

    run(body())


def disputed_lie(made: dict[str, Ingested]) -> Ingested:
    """Said to be computed on another kind of machine: V7 here can neither condemn it nor pass it."""
    return resigned(made["lie"], LIAR, numerics=msgspec.structs.replace(made["lie"].manifest.numerics, isa="AVX9"))


def test_what_is_disputed_is_neither_used_nor_offered(
    tmp_path: Path, tiny_models: dict[str, Path], made: dict[str, Ingested], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        unlucky(monkeypatch)
        lie, honest = disputed_lie(made), made["honest"]
        async with reading(tmp_path, tiny_models["llama"], lie, honest) as (w, node, port):
            with pytest.raises((IntegrityError, Untrusted)) as failed:
                await fetch(node, Cid.parse(lie.id), STRANGERS, text=TEXT)
            told = f"{failed.value.message} {failed.value.hint}"
            assert lie.id in told and honest.id in told and f"kvswap verify {lie.id} --level 7" in told
            assert caught(node) == set()
            row = node.store.get_artifact(lie.id)
            assert row is not None and row.complete
            standing = node.trust.standings.of(row)
            assert standing.name == "disputed" and standing.others == (honest.id,)
            # not used: by its id, as a beginning, whatever the terms
            for terms in (FORCED, STRANGERS, Terms(force=True, trust_on_first_use=True)):
                with pytest.raises(Untrusted, match="disputed") as refused:
                    await fetch(node, Cid.parse(lie.id), terms, text=TEXT)
                assert honest.id in str(refused.value.details) and "--level 7" in (refused.value.hint or "")
            choice = await port.choose()
            chain = lie.manifest.prefix.chain
            local = LookupTerms(local=True, allow_untrusted=True)
            assert await longest_cached_prefix(node, Wanted.of(choice), chain, 64, local) is None
            # not offered
            other = await w.node(trust=False)
            me = node.transport.peer  # type: ignore[union-attr]
            for query in (messages.Find("t", document=REFERENCE), messages.Find("t", chain=[chain[-1]])):
                assert [o for o in await find(other, query, only=[me]) if o.found.artifact == lie.id] == []
            assert node.own_prefix_index.reply(0).keys == b""
            # by the document the honest one is used, and then offered
            done = await fetch(node, REFERENCE, STRANGERS, text=TEXT)
            assert str(done.statement.artifact) == honest.id
            # what disagreed being away changes nothing, nor does looking again without computing everything
            for peer in w.nodes[:2]:
                await peer.transport.stop()  # type: ignore[union-attr]
            node.store.remove(honest.id)
            with pytest.raises(KvswapError):
                await fetch(node, Cid.parse(lie.id), STRANGERS, text=TEXT)
            await verify_artifact(node, Cid.parse(lie.id), levels=up_to(6), text=TEXT, samples=1)
            assert node.trust.standings.of(row).name == "disputed"
            # the user may trust its publisher, and take that back
            node.trust.policy.add(str(LIAR.peer_id))
            assert node.trust.standings.of(row).name == "trusted"
            assert (await fetch(node, Cid.parse(lie.id))).verification["trusted"] is True
            node.trust.policy.remove(str(LIAR.peer_id))
            with pytest.raises(Untrusted, match="disputed"):
                await fetch(node, Cid.parse(lie.id))

    run(body())


@pytest.mark.parametrize("right", [True, False])
def test_computing_everything_settles_a_dispute(
    tmp_path: Path,
    tiny_models: dict[str, Path],
    made: dict[str, Ingested],
    monkeypatch: pytest.MonkeyPatch,
    right: bool,
) -> None:
    async def body() -> None:
        unlucky(monkeypatch)
        asked, other = (made["honest"], made["lie"]) if right else (made["lie"], made["honest"])
        async with reading(tmp_path, tiny_models["llama"], asked, other) as (_, node, port):
            port.cannot = {7}  # for now
            with pytest.raises(IntegrityError, match="fingerprints of other publishers"):
                await fetch(node, Cid.parse(asked.id), STRANGERS, text=TEXT)
            outcome = node.trust.records.outcome(asked.id)
            assert outcome is not None and (outcome.verdict, outcome.others) == ("disputed", (other.id,))
            port.cannot = set()
            if right:
                report = await verify_artifact(node, Cid.parse(asked.id), levels=up_to(7), text=TEXT, samples=1)
                assert "V7" in report["passed"] and report["trusted"] is False
                assert (await fetch(node, Cid.parse(asked.id))).wire_bytes == 0
                assert caught(node) == {str(LIAR.peer_id)}
            else:
                with pytest.raises(IntegrityError, match="full recomputation"):
                    await verify_artifact(node, Cid.parse(asked.id), levels=up_to(7), text=TEXT, samples=1)
                assert caught(node) == {str(LIAR.peer_id)} and node.store.get_artifact(asked.id) is None

    run(body())


def test_a_dispute_outlives_a_model_process_that_dies_while_it_is_settled(
    tmp_path: Path, tiny_models: dict[str, Path], made: dict[str, Ingested], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        unlucky(monkeypatch)
        async with reading(tmp_path, tiny_models["llama"], made["lie"], made["honest"]) as (_, node, port):
            right = port.run

            async def dies(choice: Any, job: Any, *arguments: Any) -> Any:
                if isinstance(job, VerifyJob) and 7 in job.levels:
                    raise ConnectionResetError("the process ended, in this test")
                return await right(choice, job, *arguments)

            monkeypatch.setattr(port, "run", dies)
            with pytest.raises(ConnectionResetError):
                await fetch(node, Cid.parse(made["lie"].id), STRANGERS, text=TEXT)
            with pytest.raises(Untrusted, match="disputed"):
                await fetch(node, Cid.parse(made["lie"].id), FORCED)

    run(body())


def test_a_stranger_disputes_nothing_that_the_user_trusts(
    tmp_path: Path, tiny_models: dict[str, Path], made: dict[str, Ingested]
) -> None:
    async def body() -> None:
        honest, lie = made["honest"], made["lie"]
        second = resigned(honest, key(330))
        async with reading(tmp_path, tiny_models["llama"], honest, lie, second) as (_, node, port):
            node.trust.policy.add(str(HONEST.peer_id))
            await fetch(node, Cid.parse(honest.id), FORCED)
            report = await verify_artifact(node, Cid.parse(honest.id), levels=up_to(6), text=TEXT, samples=8)
            assert "V6" in report["unchecked"] and "untrusted" in report["unchecked"]["V6"]
            assert node.trust.records.outcome(honest.id) is None and port.done["V7"] == 0
            # and what a trusted publisher made as well is right, whatever strangers say: nothing need be computed
            done = await fetch(node, Cid.parse(second.id), STRANGERS, text=TEXT)
            assert "V6" in done.verification["passed"] and port.done["V7"] == 0

    run(body())


def test_a_stranger_that_differs_from_whom_the_user_trusts_is_caught(
    tmp_path: Path, tiny_models: dict[str, Path], made: dict[str, Ingested], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        unlucky(monkeypatch)
        sybils = [resigned(made["lie"], key(340 + number)) for number in range(2)]  # they agree with it
        async with reading(tmp_path, tiny_models["llama"], made["lie"], made["honest"], *sybils) as (_, node, _port):
            node.trust.policy.add(str(HONEST.peer_id))
            with pytest.raises(IntegrityError, match="full recomputation"):
                await fetch(node, Cid.parse(made["lie"].id), STRANGERS, text=TEXT)
            assert caught(node) == {str(LIAR.peer_id)}

    run(body())


def test_an_inexact_cache_disputes_no_exact_one(tmp_path: Path, tiny_models: dict[str, Path], scene: Scene) -> None:
    async def body() -> None:
        honest = forge(scene, scene.right, signer=HONEST)
        lossy = forge(scene, kit.ATTACKS["int8 as exact"](scene), signer=key(350), claim="inexact")
        async with reading(tmp_path, tiny_models["llama"], honest, lossy) as (_, node, port):
            done = await fetch(node, Cid.parse(honest.id), STRANGERS, text=TEXT)
            assert "V6" in done.verification["unchecked"] and port.done["V7"] == 0 and caught(node) == set()

    run(body())


def test_what_older_rules_passed_is_verified_again(
    tmp_path: Path, tiny_models: dict[str, Path], made: dict[str, Ingested]
) -> None:
    async def body() -> None:
        async with reading(tmp_path, tiny_models["llama"], made["honest"]) as (_, node, port):
            reference = Cid.parse(made["honest"].id)
            await fetch(node, reference, STRANGERS, text=TEXT)
            outcome = node.trust.records.outcome(made["honest"].id)
            assert outcome is not None and outcome.verdict == "passed"
            node.trust.records.put_outcome(replace(outcome, rules=RULES - 1))
            with pytest.raises(Untrusted):
                await fetch(node, reference, FORCED)
            before = port.done["verify"]
            await fetch(node, reference, STRANGERS, text=TEXT)
            assert port.done["verify"] > before and (await fetch(node, reference, FORCED)).wire_bytes == 0

    run(body())


def test_a_beginning_of_what_was_not_verified_is_not_used(
    tmp_path: Path, tiny_models: dict[str, Path], made: dict[str, Ingested]
) -> None:
    async def body() -> None:
        async with reading(tmp_path, tiny_models["llama"], made["honest"]) as (_, node, port):
            wanted, chain = Wanted.of(await port.choose()), made["honest"].manifest.prefix.chain[:2]
            assert await longest_cached_prefix(node, wanted, chain, 64, Terms(allow_untrusted=True)) is None
            await fetch(node, Cid.parse(made["honest"].id), STRANGERS, text=TEXT)
            found = await longest_cached_prefix(node, wanted, chain, 64)
            assert found is not None and found.tokens == 128

    run(body())


@pytest.mark.parametrize("text", [TEXT, None], ids=["text", "digest"])
def test_a_chain_of_another_text_is_caught_before_anything_of_it_is_used(
    tmp_path: Path, tiny_models: dict[str, Path], scene: Scene, text: str | None
) -> None:
    """Its cache is right, and its chain has it found as the beginning of another document."""

    async def body() -> None:
        lie = forge(scene, scene.right, signer=LIAR, signed="chain of another text")
        async with reading(tmp_path, tiny_models["llama"], lie) as (_, node, port):
            with pytest.raises(IntegrityError, match="chain"):
                await fetch(node, Cid.parse(lie.id), STRANGERS, text=text)
            assert caught(node) == {str(LIAR.peer_id)}
            chain = lie.manifest.prefix.chain
            assert await longest_cached_prefix(node, Wanted.of(await port.choose()), chain, 64) is None

    run(body())


def test_layer_0_of_a_beginning_is_compared_whatever_was_compared_of_the_whole(
    tmp_path: Path, tiny_models: dict[str, Path], scene: Scene
) -> None:
    """That an artifact is of its own document says nothing of the document that begins as its chain says."""

    async def body() -> None:
        lie = forge(scene, scene.right, signer=LIAR, signed="chain of another text")
        async with reading(tmp_path, tiny_models["llama"], lie) as (_, node, _port):
            node.trust.policy.add(str(LIAR.peer_id))
            await fetch(node, Cid.parse(lie.id), FORCED)
            node.trust.records.add_checks(lie.id, [3])  # as a version that looked at no chain noted
            other = DOCUMENT.read_text()[5000:8000]
            with pytest.raises(IntegrityError, match="layer 0"):
                request = AskRequest(
                    ref=document_digest(other.encode()), question="And?", max_tokens=1, text=other, force=True
                )
                await answer(node, request)
            assert caught(node) == {str(LIAR.peer_id)}

    run(body())


# -- what this node signed itself ----------------------------------------------------------------------


@asynccontextmanager
async def publishing(tmp_path: Path, model: Path, *, tensors: Any = None, scene: Scene) -> AsyncIterator[Any]:
    """A node that has published a wrong cache, or the right one, and a reader that trusts it."""
    async with world(tmp_path) as w:
        port = RealModel(model)
        node = await w.node(trust=False, model=port, block_tokens=64)
        reader = await w.node(trust=False)
        reader.trust.policy.add(node.identity.own)
        own = forge(scene, tensors if tensors is not None else scene.right, signer=key(1000))
        w.give(node, own)
        yield node, reader, port, own


def test_what_its_publisher_finds_wrong_is_withdrawn(
    tmp_path: Path, tiny_models: dict[str, Path], scene: Scene
) -> None:
    async def body() -> None:
        lie = scene.pasted(20, 60, scene.elsewhere, first_layer=1)
        async with publishing(tmp_path, tiny_models["llama"], tensors=lie, scene=scene) as (node, reader, _, own):
            await fetch(reader, Cid.parse(own.id), FORCED)
            with pytest.raises(IntegrityError, match="sampled positions"):
                await verify_artifact(node, Cid.parse(own.id), levels=up_to(5), text=TEXT)
            assert node.store.artifacts() == [] and node.store.used_bytes == 0
            head = own_status_record(node)
            assert head is not None and "found it wrong" in head.record.reasons[own.id]
            await find(reader, messages.Find("t", document=REFERENCE))
            assert reader.store.artifacts() == []

    run(body())


def test_what_its_publisher_cannot_compute_twice_is_unlisted(
    tmp_path: Path, tiny_models: dict[str, Path], scene: Scene
) -> None:
    async def body() -> None:
        lie = scene.pasted(20, 60, scene.elsewhere, first_layer=1)
        async with publishing(tmp_path, tiny_models["llama"], tensors=lie, scene=scene) as (node, reader, port, own):
            port.cannot = {7}
            with pytest.raises(IntegrityError, match="sampled positions"):
                await verify_artifact(node, Cid.parse(own.id), levels=up_to(5), text=TEXT)
            (row,) = node.store.artifacts()
            standing = node.trust.standings.of(row)
            assert standing.name == "wrong" and "V5" in standing.why and not standing.offered
            assert await find(reader, messages.Find("t", artifact=own.id)) == []
            with pytest.raises(IntegrityError, match="found wrong"):
                await fetch(node, Cid.parse(own.id), FORCED)
            again = await publish(node, TEXT.encode())  # which does not count as there
            assert again["reused"] is False
            port.cannot = set()
            with pytest.raises(IntegrityError):  # a second computation, later
                await verify_artifact(node, Cid.parse(own.id), levels=up_to(5), text=TEXT)
            assert [r.id for r in node.store.artifacts()] == [again["artifact"]]

    run(body())


def test_a_slip_while_verifying_takes_nothing_back(tmp_path: Path, tiny_models: dict[str, Path], scene: Scene) -> None:
    async def body() -> None:
        async with publishing(tmp_path, tiny_models["llama"], scene=scene) as (node, reader, port, own):
            port.slips = 1
            with pytest.raises(IntegrityError, match="slip"):
                await verify_artifact(node, Cid.parse(own.id), levels=up_to(5), text=TEXT)
            (row,) = node.store.artifacts()
            assert node.trust.standings.of(row).name == "own" and node.trust.records.outcome(own.id) is None
            assert [o.found.artifact for o in await find(reader, messages.Find("t", artifact=own.id))] == [own.id]

    run(body())


def test_a_chunk_that_is_damaged_here_takes_nothing_back(
    tmp_path: Path, tiny_models: dict[str, Path], scene: Scene
) -> None:
    async def body() -> None:
        async with publishing(tmp_path, tiny_models["llama"], scene=scene) as (node, _, _port, own):
            path = next(iter((node.store.root / "chunks").rglob("bafkr4i*")))
            path.write_bytes(b"\0" + path.read_bytes()[1:])
            with pytest.raises(IntegrityError):
                await verify_artifact(node, Cid.parse(own.id), levels=up_to(5), text=TEXT)
            assert (
                node.trust.records.outcome(own.id) is None and node.trust.records.withdrawn_by(node.identity.own) == {}
            )

    run(body())


def test_what_was_made_while_the_clock_was_ahead_is_made_again(
    tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False, model=RealModel(tiny_models["llama"]), block_tokens=64)
            reader = await w.node(trust=False)
            reader.trust.policy.add(node.identity.own)
            right = time.time
            with monkeypatch.context() as ahead:
                ahead.setattr(time, "time", lambda: right() + 10 * 365 * 86_400)
                early = await publish(node, TEXT.encode())
            row = node.store.get_artifact(early["artifact"])
            assert row is not None and node.trust.standings.of(row).name == "future"
            now = await publish(node, TEXT.encode())
            assert now["reused"] is False and now["artifact"] != early["artifact"]
            assert (await publish(node, TEXT.encode()))["reused"] is True
            done = await fetch(reader, REFERENCE, FORCED)
            assert str(done.statement.artifact) == now["artifact"]
            report = await verify_artifact(node, REFERENCE, levels=up_to(3), text=TEXT)
            assert report["artifact"] == now["artifact"] and own_status_record(node).record.artifacts == 2  # type: ignore[union-attr]

    run(body())
