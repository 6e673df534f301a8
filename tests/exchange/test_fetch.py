"""Fetching over the reference transport: several peers, lies, resumption, trust before bytes."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import msgspec
import pytest

from kvswap.api.requests import PublishOptions
from kvswap.artifact import dsse
from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.layout import needed
from kvswap.artifact.manifest import Divergence
from kvswap.artifact.specs import LayerSpec
from kvswap.core.errors import (
    Incompatible,
    IntegrityError,
    KvswapError,
    NotFound,
    P2pDown,
    PeerError,
    PlanSaysPrefill,
    StoreFull,
    TokenRefused,
    Untrusted,
    UsageError,
)
from kvswap.core.failures import as_kvswap_error
from kvswap.core.ids import Cid
from kvswap.core.settings import Settings
from kvswap.cost import Calibration, Objective
from kvswap.exchange import Node
from kvswap.exchange.discovery.lookup import _YOUNG_SECONDS, find
from kvswap.exchange.discovery.resolve import resolve
from kvswap.exchange.fetch import fetch
from kvswap.exchange.model_port import ModelChoice, Wanted
from kvswap.exchange.node.listing import list_artifact
from kvswap.exchange.planning.decision import best
from kvswap.exchange.prefix import fetch_prefix, longest_cached_prefix, plan_prefix
from kvswap.exchange.request import Terms
from kvswap.exchange.serving import answers as serving
from kvswap.exchange.serving.parts import Serving
from kvswap.exchange.serving.service import Service
from kvswap.exchange.transfer import downloader
from kvswap.exchange.verification.status_records import receive_status_records
from kvswap.net import PeerAddress, messages
from kvswap.net.client import session
from kvswap.net.memory import MemoryNetwork, MemoryTransport
from kvswap.net.server import Held
from kvswap.store import Store
from kvswap.trust import PolicyFile, read_statement
from kvswap.trust.status_record import make_status_record
from tests.exchange.peers import Peer
from tests.exchange.peers import found as offer
from tests.support import Ingested, NoModel, identity, key, make_artifact, run

DOCUMENT = "sha256:" + __import__("hashlib").sha256(b"a document for tests").hexdigest()


def needed_bytes(made: Ingested) -> int:
    """What a reader of the whole document fetches: not the windows that its end has left behind."""
    cids = {made.manifest.chunks[i].id for i in needed(made.manifest)}
    assert cids < set(made.chunks)
    return sum(len(made.chunks[cid]) for cid in cids)


class SlowModel(NoModel):
    """A model whose calibration is already known: fetching is judged against it."""

    def __init__(self, dtype: str = "bfloat16", label: str = "tiny") -> None:
        self.choice = ModelChoice(label, identity(label), dtype, "cpu", 1)

    async def choose(self, name: str | None = None) -> ModelChoice:
        return self.choice


SERVICES: WeakKeyDictionary[Node, Service] = WeakKeyDictionary()  # of the nodes of every world


class World:
    """Nodes on one in-memory network."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.network = MemoryNetwork()
        self.nodes: list[Node] = []
        self.apart: list[Node] = []

    async def node(
        self,
        *,
        model: Any = None,
        trust: bool = True,
        quota: int = 10**9,
        bulk: bool = False,
        apart: bool = False,
        **settings: Any,
    ) -> Node:
        """`bulk`: with a real HTTPS port on loopback.  `apart`: on a network where nobody else is."""
        if bulk:
            settings["listen"] = ("/ip4/127.0.0.1/tcp/0",)
        number = len(self.nodes)
        home = self.root / str(number)
        publisher = key(1000 + number)
        store = Store.open(home / "store", quota)
        policy = PolicyFile(home / "trust.json", publisher.peer_id)
        if trust:
            policy.add(str(key().peer_id))
        node = Node(
            Settings(home=home, models=home, **settings),
            store,
            MemoryTransport(MemoryNetwork() if apart else self.network, str(key(2000 + number).peer_id)),
            model or NoModel(),
            publisher,
            policy,
            Calibration(home / "calibration.json"),
            key(2000 + number) if bulk else None,
        )
        SERVICES[node] = Service(node)
        await SERVICES[node].start()
        node.counters.started -= _YOUNG_SECONDS  # or a look-up in vain waits for peers who are still on their way
        for other in [n for n in self.nodes if n.p2p and not (apart or n in self.apart)]:
            await node.transport.connect(PeerAddress(other.transport.peer))  # type: ignore[union-attr]
        self.nodes.append(node)
        self.apart += [node] if apart else []
        return node

    @staticmethod
    def give(node: Node, made: Ingested, only: set[Cid] | None = None) -> None:
        for cid, wire in made.chunks.items():
            if only is None or cid in only:
                node.store.put_chunk(wire, cid)
        list_artifact(node.store, made.statement)


def resigned(made: Ingested, signer: Any, **changes: Any) -> Ingested:
    """The same by this publisher, who says something else besides."""
    manifest = msgspec.structs.replace(made.manifest, publisher=str(signer.peer_id), **changes)
    return Ingested(read_statement(dsse.seal(manifest.encode(), str(signer.peer_id), signer.sign)), made.chunks, [])


@asynccontextmanager
async def world(root: Path) -> AsyncIterator[World]:
    made = World(root)
    try:
        yield made
    finally:
        for node in made.nodes:
            await SERVICES[node].stop()
            node.store.close()


def test_a_document_is_fetched_whole_and_then_served(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=100)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            done = await fetch(b, DOCUMENT)
            assert str(done.statement.artifact) == made.id
            assert done.wire_bytes == needed_bytes(made)
            assert done.peers == (a.transport.peer,)  # type: ignore[union-attr]
            again = await fetch(b, Cid.parse(made.id))
            assert again.wire_bytes == 0 and again.peers == ()
            await w.nodes[0].transport.stop()  # type: ignore[union-attr]
            c = await w.node()
            assert (await fetch(c, DOCUMENT)).peers == (b.transport.peer,)  # type: ignore[union-attr]
            assert c.store.verify().clean

    run(body())


def test_several_peers_serve_one_fetch(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=400)
            cids = [c.id for c in made.manifest.chunks]
            # nobody has everything; together they do
            holders = [await w.node() for _ in range(3)]
            whole = await w.node()
            for number, holder in enumerate(holders):
                w.give(holder, made, set(cids[number::3]))
            w.give(whole, made)
            reader = await w.node()
            original = serving.answer
            done = await fetch(reader, DOCUMENT)
            assert serving.answer is original
            assert reader.store.get_artifact(made.id).complete  # type: ignore[union-attr]
            assert len(done.peers) >= 1

    run(body())


@pytest.mark.parametrize("bulk", [False, True], ids=["libp2p", "https"])
def test_a_source_that_is_blocked_gives_nothing_more(tmp_path: Path, bulk: bool) -> None:
    """From that moment, in the middle of a transfer; the rest comes from others, or the fetch says why it stopped."""

    async def body() -> None:
        async with world(tmp_path) as w:
            specs = (LayerSpec.key_value("full", 4, 64, 64),) * 6
            made = make_artifact(tokens=1024, block_tokens=128, specs=specs, codec="raw")
            slow = await w.node(bulk=bulk, upload_bytes_per_second=1_000_000)
            w.give(slow, made)
            reader = await w.node(bulk=bulk)
            peer = slow.transport.peer  # type: ignore[union-attr]
            fetching = asyncio.create_task(fetch(reader, Cid.parse(made.id)))
            while not slow.counters.bytes_out:
                await asyncio.sleep(0.005)
            other = await w.node(bulk=bulk)
            w.give(other, made)
            reader.peers.block(peer, True)
            held = reader.peers.record(peer).bytes_in
            done = await fetching
            assert str(done.statement.artifact) == made.id
            assert reader.peers.record(peer).bytes_in == held  # not even what was under way
            assert peer not in reader.transport.connected()  # type: ignore[union-attr]
            assert not [c for c in reader.network.bulk._idle if c.peer == peer]
            assert reader.peers.record(peer).failures == 0  # it did nothing wrong in this

    run(body())


def test_what_peers_ask_for_decides_from_whom_it_is_fetched(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = make_artifact(tokens=40, model=identity())
        async with world(tmp_path) as w:
            dear = await w.node(asks_per_gb=5.0)
            cheap = await w.node(asks_per_gb=0.25)
            for node in (dear, cheap):
                w.give(node, made)
            reader = await w.node(model=SlowModel(), price_per_second=1.0)
            reader.calibration.add_prefill((await reader.model.choose()).calibration_key, [(0, 8, 9.0)])
            peers = [node.transport.peer for node in (dear, cheap)]  # type: ignore[union-attr]
            for peer, rate in zip(peers, (1e9, 1e4), strict=True):
                reader.calibration.add_rate(peer, rate)
            usable = await resolve(reader, DOCUMENT)
            chosen = {}
            for by in ("money", "time"):
                _, planned = await best(reader, usable, Objective(by))
                fetching = planned.plan.fetch
                assert fetching is not None
                chosen[by] = (set(planned.peers), fetching.dollars / fetching.bytes * 1e9)
            assert chosen["money"] == ({peers[1]}, pytest.approx(0.25))
            assert chosen["time"] == (set(peers), pytest.approx(5.0))
            terms = Terms(aim="money")
            assert (await fetch(reader, DOCUMENT, terms)).peers == (peers[1],)

    run(scenario())


def test_partial_holders_together_make_a_whole(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=400)
            cids = [c.id for c in made.manifest.chunks]
            holders = [await w.node() for _ in range(2)]
            for number, holder in enumerate(holders):
                w.give(holder, made, set(cids[number::2]))
            reader = await w.node()
            done = await fetch(reader, DOCUMENT)
            assert set(done.peers) == {h.transport.peer for h in holders}  # type: ignore[union-attr]

    run(body())


LIES = {
    "flips a bit": lambda data, made: bytes([data[0] ^ 1]) + data[1:],
    "cuts": lambda data, made: data[:-1],
    "swaps": lambda data, made: next(w for w in made.chunks.values() if w != data and len(w) <= len(data) + 200),
    "empties": lambda data, made: b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_liar_is_marked_and_the_rest_comes_from_elsewhere(
    tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=200)
            sends_invalid_data, honest = await w.node(), await w.node()
            w.give(sends_invalid_data, made)
            w.give(honest, made)
            true_chunk = serving._chunk

            async def chunk(giving: Serving, peer: str, text: str) -> Held:
                held = await true_chunk(giving, peer, text)
                return Held(LIES[lie](held.body, made), held.release) if giving.node is sends_invalid_data else held

            monkeypatch.setattr(serving, "_chunk", chunk)
            reader = await w.node()
            done = await fetch(reader, DOCUMENT)
            assert sends_invalid_data.transport.peer not in done.peers  # type: ignore[union-attr]
            assert reader.ledger.peers()[sends_invalid_data.transport.peer].lies == 1  # type: ignore[union-attr]
            assert reader.store.verify().clean
            assert any(e["event"] == "peer_lied" for e in reader.events.recent())
            # with nobody else: an integrity error, and nothing wrong in the index
            alone = await w.node()
            await honest.transport.stop()  # type: ignore[union-attr]
            await reader.transport.stop()  # type: ignore[union-attr]
            with pytest.raises(IntegrityError):
                await fetch(alone, DOCUMENT)
            assert alone.store.verify().checked == 0
            assert not alone.store.get_artifact(made.id).complete  # type: ignore[union-attr]

    run(body())


def test_an_interrupted_fetch_resumes_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=400)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            put, stored = b.store.put_chunk, 0

            def stop_early(*arguments: Any) -> Any:
                nonlocal stored
                stored += 1
                if stored == 10:
                    loop.call_soon_threadsafe(fetching.cancel)
                return put(*arguments)

            loop = asyncio.get_running_loop()
            monkeypatch.setattr(b.store, "put_chunk", stop_early)
            fetching = asyncio.ensure_future(fetch(b, DOCUMENT))
            with pytest.raises(asyncio.CancelledError):
                await fetching
            before = b.store.used_bytes
            assert 0 < before < needed_bytes(made)
            done = await fetch(b, DOCUMENT)
            assert done.wire_bytes == needed_bytes(made) - before

    run(body())


def test_trust_is_decided_before_a_byte_of_a_chunk(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact()
            a, b = await w.node(), await w.node(trust=False)
            w.give(a, made)
            with pytest.raises(Untrusted) as caught:
                await fetch(b, DOCUMENT)
            assert caught.value.hint == f"kvswap trust add {made.manifest.publisher}"
            assert a.counters.bytes_out == 0 and b.store.artifacts() == []
            await fetch(b, DOCUMENT, Terms(trust_on_first_use=True))
            assert b.trust.policy.rows()[0]["how"] == "first-use"

    run(body())


@pytest.mark.parametrize(
    "offered", ["withdrawn", "of another document", "only planned", "not worth it", "removed by the user"]
)
def test_first_use_trusts_nobody_of_whom_nothing_is_used(
    tmp_path: Path, offered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can offer something could otherwise make itself trusted, for good."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(text=b"another") if offered == "of another document" else make_artifact()
            a, b = await w.node(), await w.node(trust=False)
            first = Terms(trust_on_first_use=True)
            w.give(a, made)
            if offered == "of another document":

                async def lying(request: messages.Request) -> Any:
                    if isinstance(request, messages.Find):
                        row = offer(0, artifact=made.id, publisher=made.manifest.publisher)
                        return messages.FindReply("test", made.manifest.publisher, [row], [])
                    return made.statement.envelope if isinstance(request, messages.GetManifest) else None

                await Peer(w.network, 4000, lying).start(b)
            if offered == "withdrawn":
                receive_status_records(
                    b, [make_status_record(key(), 1, int(time.time()), [], {made.id: "an error"}).envelope], "sender"
                )
            if offered == "removed by the user":
                b.trust.policy.add(made.manifest.publisher, "known")
                b.trust.policy.remove(made.manifest.publisher)
            if offered == "only planned":
                await resolve(b, DOCUMENT, first)
            elif offered == "not worth it":
                monkeypatch.setattr("kvswap.exchange.transfer.choosing.best", declined)
                with pytest.raises(PlanSaysPrefill):
                    await fetch(b, DOCUMENT, first)
            else:
                with pytest.raises((Untrusted, IntegrityError, NotFound)):
                    await fetch(b, DOCUMENT, first)
            assert b.trust.policy.rows() == []

    async def declined(*given: Any, **named: Any) -> Any:
        resolved, planned = await best(*given, **named)
        return resolved, replace(planned, plan=replace(planned.plan, action="prefill"))

    run(body())


def test_first_use_trusts_whose_beginning_is_used_and_no_other(tmp_path: Path) -> None:
    """Looking for the longest one, and planning for it, uses nothing."""

    async def body() -> None:
        async with world(tmp_path) as w:
            long, short = make_artifact(key(31), tokens=64), make_artifact(key(32), tokens=32, text=b"another")
            chain = long.manifest.prefix.chain
            prefix = msgspec.structs.replace(short.manifest.prefix, chain=[*chain[:3], bytes(32)])
            short = resigned(short, key(32), prefix=prefix)
            a, b = await w.node(), await w.node(trust=False)
            w.give(a, long)
            w.give(a, short)
            terms = Terms(trust_on_first_use=True, force=True)
            wanted = Wanted(long.manifest.model.digest, long.manifest.layout.dtype)
            found = await longest_cached_prefix(b, wanted, chain, 8, terms)
            assert found is not None and found.tokens == 64
            await plan_prefix(b, found, terms)
            assert b.trust.policy.rows() == []
            await fetch_prefix(b, found, terms)
            assert [row["peer"] for row in b.trust.policy.rows()] == [str(key(31).peer_id)]

    run(body())


def test_of_several_codecs_the_one_that_is_here_soonest_is_fetched(tmp_path: Path) -> None:
    """A slow link asks for the small one, a fast link for the one that is loaded fast."""

    async def body() -> None:
        async with world(tmp_path) as w:
            small = make_artifact(tokens=400, codec="planes")
            fast = make_artifact(tokens=400, codec="raw")
            assert needed_bytes(small) < 0.9 * needed_bytes(fast)
            a = await w.node()
            w.give(a, small)
            w.give(a, fast)
            for rate, wanted in ((1e5, small), (1e12, fast)):
                b = await w.node()
                b.calibration.add_rate(a.transport.peer, rate)  # type: ignore[union-attr]
                done = await fetch(b, DOCUMENT, Terms(force=True))
                assert str(done.statement.artifact) == wanted.id
                assert done.result().codec == wanted.manifest.codecs[0]

    run(body())


def test_an_inexact_artifact_is_only_for_who_asks_for_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=400, codec="int8", divergence=Divergence(steps=32, equal=16, first=9, kl=5))
            a, b = await w.node(), await w.node()
            w.give(a, made)
            for reference in (DOCUMENT, Cid.parse(made.id)):
                with pytest.raises(Incompatible, match="16 of 32") as caught:
                    await fetch(b, reference)
                assert caught.value.details["field"] == "codec"
            done = await fetch(b, DOCUMENT, Terms(allow_lossy=True))
            assert not done.result().lossless
            with pytest.raises(Incompatible):
                await fetch(b, DOCUMENT)  # that it is here already changes nothing
            w.give(a, lossless := make_artifact(tokens=400))
            assert str((await fetch(b, DOCUMENT)).statement.artifact) == lossless.id

    run(body())


def test_an_expired_artifact_is_neither_offered_nor_used(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(now=1_700_000_000)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            assert await find(b, messages.Find("test", document=DOCUMENT), 0.3) == []
            w.give(b, made)
            with pytest.raises(Untrusted, match="expired"):
                await fetch(b, DOCUMENT)

    run(body())


def test_another_model_and_another_dtype_are_named(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a = await w.node()
            w.give(a, make_artifact())
            other = await w.node(model=SlowModel(label="other"))
            with pytest.raises(Incompatible) as caught:
                await fetch(other, DOCUMENT)
            assert caught.value.details["field"] == "model"
            wide = await w.node(model=SlowModel(dtype="float32"))
            with pytest.raises(Incompatible) as caught:
                await fetch(wide, DOCUMENT)
            assert caught.value.details["field"] == "dtype"

    run(body())


def test_the_right_one_of_several_artifacts_is_taken(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a = await w.node()
            wanted = make_artifact(seed=1, dtype="float32")
            for made in (make_artifact(seed=2), wanted, make_artifact(seed=3, model=identity("other"))):
                w.give(a, made)
            model = SlowModel(dtype="float32")
            b = await w.node(model=model)
            b.calibration.add_prefill(model.choice.calibration_key, [(0, 8, 100.0)])
            assert str((await fetch(b, DOCUMENT)).statement.artifact) == wanted.id

    run(body())


def test_the_plan_is_obeyed_unless_forced(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a = await w.node()
            made = make_artifact(tokens=100)
            w.give(a, made)
            model = SlowModel()
            b = await w.node(model=model, assumed_link_bytes_per_second=100.0)
            b.calibration.add_prefill(model.choice.calibration_key, [(0, 8, 0.0001)])
            with pytest.raises(PlanSaysPrefill) as caught:
                await fetch(b, DOCUMENT)
            figures = caught.value.details["plan"]
            assert figures["action"] == "prefill" and figures["fetch"]["seconds"] > figures["prefill"]["seconds"]
            assert a.counters.bytes_out == 0
            done = await fetch(b, DOCUMENT, Terms(force=True))
            assert done.plan.action == "prefill" and done.wire_bytes > 0

    run(body())


def test_a_link_that_turns_out_slow_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assumed fast, found slow: the fetch stops where prefilling the whole beats waiting for the rest."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=400)
            a = await w.node()
            w.give(a, made)
            true_chunk = serving._chunk

            async def slow(giving: Serving, peer: str, text: str) -> Held:
                await asyncio.sleep(0.8)
                return await true_chunk(giving, peer, text)

            monkeypatch.setattr(serving, "_chunk", slow)
            model = SlowModel()
            b = await w.node(model=model)
            b.calibration.add_prefill(model.choice.calibration_key, [(0, 8, 0.05)])  # 2.5 s for the whole
            with pytest.raises(PlanSaysPrefill) as caught:
                await fetch(b, DOCUMENT)
            assert caught.value.details["plan"]["fetch"]["seconds"] > caught.value.details["plan"]["prefill"]["seconds"]
            assert any(e["event"] == "abandoned" for e in b.events.recent())
            here = b.store.used_bytes
            assert 0 < here < needed_bytes(made)
            given = a.counters.bytes_out
            with pytest.raises(PlanSaysPrefill):  # and now it is known
                await fetch(b, DOCUMENT)
            assert a.counters.bytes_out - given <= made.manifest.raw_bytes / 10
            monkeypatch.setattr(serving, "_chunk", true_chunk)
            done = await fetch(b, DOCUMENT, Terms(force=True))
            assert done.wire_bytes < needed_bytes(made) and b.store.verify().clean

    run(body())


def test_nobody_has_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            await w.node()
            b = await w.node()
            with pytest.raises(NotFound):
                await asyncio.wait_for(fetch(b, "sha256:" + "0" * 64), 600)

    run(body())


def test_a_quota_too_small_is_store_full_and_the_store_stays_right(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=400)
            a, b = await w.node(), await w.node(quota=5_000)
            w.give(a, made)
            with pytest.raises(StoreFull):
                await fetch(b, DOCUMENT)
            assert b.store.verify().clean and b.store.used_bytes <= 5_000

    run(body())


def test_a_peer_that_claims_and_has_not(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=50)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            for path in (a.store.root / "chunks").rglob("bafkr4i*"):
                path.unlink()
            with pytest.raises(PeerError) as caught:
                await fetch(b, DOCUMENT)
            assert "resumes" in (caught.value.hint or "")

    run(body())


@pytest.mark.parametrize("inline", [True, False])
def test_manifests_that_are_not_what_was_asked_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool
) -> None:
    """Whether they come with the answer to the look-up, or by themselves."""

    async def body() -> None:
        async with world(tmp_path) as w:
            wanted, other = make_artifact(seed=1), make_artifact(seed=2, text=b"another text")
            a, b = await w.node(), await w.node()
            w.give(a, wanted)
            if inline:
                monkeypatch.setattr(a.store, "envelope", lambda artifact: other.statement.envelope)
            else:
                monkeypatch.setattr(serving, "LIMITS", replace(serving.LIMITS, inline_envelope_bytes=0))
                monkeypatch.setattr(serving, "_envelope", lambda node, artifact: other.statement.envelope)
            with pytest.raises(IntegrityError):
                await fetch(b, DOCUMENT)
            assert b.store.artifacts() == []

    run(body())


def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of requests that nodes are asked from now on."""
    kinds: list[str] = []
    right = serving.answer

    async def answer(giving: Serving, caller: Any, request: messages.Request) -> Any:
        kinds.append(type(request).__name__)
        return await right(giving, caller, request)

    monkeypatch.setattr(serving, "answer", answer)
    return kinds


def test_who_has_it_whole_is_asked_for_chunks_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question, then chunks: nothing else stands before them."""

    async def body() -> None:
        kinds = heard(monkeypatch)
        monkeypatch.setattr(downloader, "_JOIN_SECONDS", 60.0)
        async with world(tmp_path) as w:
            made = make_artifact(tokens=100)
            a, b = await w.node(bulk=True), await w.node(bulk=True)
            w.give(a, made)
            for reference in (DOCUMENT, Cid.parse(made.id)):
                kinds.clear()
                done = await fetch(b, reference)
                assert done.peers == (a.transport.peer,)  # type: ignore[union-attr]
                assert kinds == ["Find"]
                b.store.remove(made.id)
                b.store.collect()
            assert not [e for e in b.events.recent() if e["event"] == "without_bulk"]

    run(body())


def test_who_has_a_part_is_joined_and_so_is_whoever_refuses_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        kinds = heard(monkeypatch)
        async with world(tmp_path) as w:
            made = make_artifact(tokens=100)
            a, b = await w.node(bulk=True), await w.node(bulk=True)
            w.give(a, made, only=set(list(made.chunks)[:3]))
            with pytest.raises(PeerError):
                await fetch(b, DOCUMENT)
            assert "Join" in kinds
            w.give(a, made)
            right = b.peers.bulk_tickets.put

            def put(peer: str, grant: messages.BulkTicket, artifacts: Any) -> None:
                SERVICES[a].serving.tokens.revoke(grant.token)  # as when it had restarted meanwhile
                right(peer, grant, artifacts)

            monkeypatch.setattr(b.peers.bulk_tickets, "put", put)
            kinds.clear()
            b.peers.record(a.transport.peer).worked()  # type: ignore[union-attr]
            assert (await fetch(b, DOCUMENT)).wire_bytes > 0
            assert kinds[0] == "Find" and "Join" in kinds
            assert b.store.verify().clean

    run(body())


def test_a_stream_has_one_token_until_half_of_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact()
            a, b = await w.node(bulk=True), await w.node(bulk=True)
            w.give(a, made)
            address = a.transport.peer  # type: ignore[union-attr]
            find_ = messages.Find("test", document=DOCUMENT, bulk=True)
            async with session(b.transport, address) as pipe:  # type: ignore[arg-type]

                async def token(request: messages.Find = find_) -> str | None:
                    reply = await pipe.ask(request, messages.FindReply)
                    return reply.grant.token if reply.grant is not None else None

                first = await token()
                assert first is not None and SERVICES[a].serving.tokens.check(first) == b.transport.peer  # type: ignore[union-attr]
                assert await token() == first
                assert await token(messages.Find("test", document=DOCUMENT)) is None
                assert await token(messages.Find("test", document="sha256:" + "0" * 64, bulk=True)) is None
            while SERVICES[a].serving.tokens.holds(first):  # until the stream has ended
                await asyncio.sleep(0.01)
            with pytest.raises(TokenRefused):
                SERVICES[a].serving.tokens.check(first)
            monkeypatch.setattr(serving, "LIMITS", replace(serving.LIMITS, token_seconds=0.0))
            async with session(b.transport, address) as pipe:  # type: ignore[arg-type]
                assert await token() != await token()

    run(body())


def test_longest_prefix_is_looked_up_by_chain_digests(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=64, block_tokens=8)
            a, b = await w.node(), await w.node()
            w.give(a, made)
            chain = [*made.manifest.prefix.chain[:5], os.urandom(32)]
            offers = await find(b, messages.Find("test", chain=chain))
            assert [(o.found.artifact, o.found.shared_blocks) for o in offers] == [(made.id, 5)]

    run(body())


@pytest.mark.parametrize(
    "request_",
    [
        messages.GetManifest("../../etc/passwd"),
        messages.GetChunk("x"),
        messages.Find("test", document="sha256:zz"),
        messages.Find("test"),
        messages.Join(str(Cid.of(b"nothing")), messages.Provider("somebody else", []), True),
        messages.Find("test", document="sha256:" + "0" * 64, artifact="bafkr4i"),
        messages.Have(str(Cid.of(b"nothing"))),
    ],
)
def test_bad_requests_get_an_error_and_the_stream_goes_on(tmp_path: Path, request_: messages.Request) -> None:
    async def body() -> None:
        from kvswap.net.client import session

        async with world(tmp_path) as w:
            a, b = await w.node(), await w.node()
            async with session(b.transport, a.transport.peer) as pipe:  # type: ignore[arg-type,union-attr]
                with pytest.raises(KvswapError):
                    await pipe.ask(request_, bytes)
                reply = await pipe.ask(messages.Find("test", document=DOCUMENT), messages.FindReply)
                assert reply.publisher == a.identity.own

    run(body())


def test_announcements_for_somebody_else_are_ignored(tmp_path: Path) -> None:
    async def body() -> None:
        from kvswap.net import Announcement

        async with world(tmp_path) as w:
            a = await w.node()
            artifact = str(Cid.of(b"x"))
            provider = messages.Provider(str(key(5).peer_id), ["/ip4/127.0.0.1/tcp/1"])
            data = messages.encode_announce(messages.Announce(artifact, None, provider))
            SERVICES[a].on_announcement(Announcement(str(key(6).peer_id), data))
            SERVICES[a].on_announcement(Announcement(str(key(5).peer_id), b"noise"))
            assert a.network.referrals(artifact) == []
            SERVICES[a].on_announcement(Announcement(str(key(5).peer_id), data))
            assert [p.peer for p in a.network.referrals(artifact)] == [str(key(5).peer_id)]

    run(body())


def test_a_background_task_that_fails_is_seen(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a = await w.node()

            async def breaks() -> None:
                raise ZeroDivisionError("on purpose")

            a.background.spawn(breaks())
            while "breaks" not in a.problems:
                await asyncio.sleep(0)
            assert "ZeroDivisionError" in a.problems["breaks"]
            assert a.events.recent()[-1]["event"] == "task_failed"

    run(body())


@pytest.mark.parametrize("text", ["\x1b]0;owned\x07", "a\nb", "\u202eabc", "\ud800"])
@pytest.mark.parametrize("where", ["source", "media_type", "codec"])
def test_what_is_signed_has_no_control_characters(where: str, text: str, tmp_path: Path) -> None:
    from kvswap.exchange.publish import publish

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(model=SlowModel())
            with pytest.raises(UsageError) as caught:
                await publish(node, b"a text", PublishOptions(**{where: text}))
            assert caught.value.message.isprintable() and caught.value.exit_code == 2

    run(body())


def test_a_label_with_control_characters_stays_readable_and_is_not_signed_again(tmp_path: Path) -> None:
    from kvswap.exchange.publishing.signing import sign

    made = make_artifact(tokens=64)
    bad = msgspec.structs.replace(made.manifest, model=msgspec.structs.replace(made.manifest.model, label="a\x1bb"))

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            assert parse_manifest(bad.encode()).model.label == "a\x1bb"
            with pytest.raises(UsageError):
                sign(node, bad)

    run(body())


def test_a_typing_error_in_the_codec_is_ours_and_told_before_any_work(tmp_path: Path) -> None:
    from kvswap.exchange.publish import publish

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(model=SlowModel())
            with pytest.raises(UsageError, match="unknown codec 'plane'") as caught:
                await publish(node, b"a text", PublishOptions(codec="plane"))
            assert "newer" not in str(caught.value.cause)

    run(body())


FULL = sqlite3.OperationalError("database or disk is full")
FULL.sqlite_errorcode = sqlite3.SQLITE_FULL
DAMAGED = sqlite3.DatabaseError("database disk image is malformed")
DAMAGED.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
DISK = (
    "full database",
    "full disk",
    "quota",
    "store full",
    "read-only",
    "permission",
    "damaged database",
    "damage, as told",
)
OWN = {
    "full database": (FULL, 12),
    "full disk": (OSError(errno.ENOSPC, "No space left on device"), 12),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), 12),
    "store full": (StoreFull("no room"), 12),
    "read-only": (OSError(errno.EROFS, "Read-only file system"), 1),
    "permission": (PermissionError(errno.EACCES, "Permission denied"), 1),
    "damaged database": (DAMAGED, 6),
    "damage, as told": (as_kvswap_error(DAMAGED), 6),
    "the network part": (P2pDown("it stopped"), 9),
    "a fault": (KeyError("x"), 1),
    "text": (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), 2),
}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (n, p)
        for n in OWN
        for p in ("hearing", "writing", "reading", "judging")
        if (p != "hearing" or n not in DISK) and (p != "writing" or n != "the network part")
    ],
)
def test_own_trouble_is_never_told_as_a_peers(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, code = OWN[name]

    def fail(*arguments: Any, **named: Any) -> Any:
        raise error

    async def body() -> None:
        async with world(tmp_path) as w:
            a, b = await w.node(), await w.node()
            made = make_artifact(
                a.identity.publisher if place == "hearing" else None, tokens=100
            )  # then a head comes along
            w.give(a, made)
            if place == "hearing":
                monkeypatch.setattr("kvswap.exchange.discovery.lookup.receive_status_records", fail)
            elif place == "writing":
                monkeypatch.setattr(b.store, "put_chunk", fail)
            elif place == "judging":
                monkeypatch.setattr("kvswap.exchange.discovery.resolve.require_current", fail)
            else:
                monkeypatch.setattr(b.store, "missing", fail)
            with pytest.raises(Exception) as caught:
                await fetch(b, DOCUMENT, Terms(force=True))
            told = as_kvswap_error(caught.value)
            assert told.exit_code == code, told.message
            blamed(b, a)

    run(body())


def blamed(node: Node, other: Node) -> None:
    """Nothing is held against the other."""
    peer = other.transport.peer  # type: ignore[union-attr]
    record = node.peers.record(peer)
    assert (record.failures, record.lies, list(node.network.prefix_indexes.false_indexes)) == (0, 0, [])


@pytest.mark.parametrize("name", DISK)
def test_a_disk_that_does_not_take_what_came_along_ends_no_fetch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise OWN[name][0]

    async def body() -> None:
        async with world(tmp_path) as w:
            a, b = await w.node(), await w.node()
            w.give(a, made := make_artifact(a.identity.publisher, tokens=100))  # so a head comes along
            b.trust.policy.add(made.manifest.publisher)
            monkeypatch.setattr("kvswap.exchange.discovery.lookup.receive_status_records", fail)
            assert str((await fetch(b, DOCUMENT)).statement.artifact) == made.id
            assert "heard" in b.problems
            blamed(b, a)

    run(body())


@pytest.mark.parametrize("asked", ["Find", "GetManifest", "Join", "GetPrefixIndex"])
def test_when_our_own_network_part_ends_no_peer_is_told_to_have_failed(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a, b = await w.node(), await w.node()
            w.give(a, made := make_artifact(tokens=64, block_tokens=8))
            monkeypatch.setattr(serving, "LIMITS", replace(serving.LIMITS, inline_envelope_bytes=0))
            sessions = b.network.sessions
            assert sessions is not None

            def ends(right: Any) -> Any:
                async def function(address: PeerAddress, request: messages.Request, *rest: Any) -> Any:
                    if type(request).__name__ == asked:
                        raise P2pDown("the peer-to-peer part stopped")
                    return await right(address, request, *rest)

                return function

            monkeypatch.setattr(sessions, "ask", ends(sessions.ask))
            monkeypatch.setattr(sessions, "begin", ends(sessions.begin))
            if asked != "GetPrefixIndex":
                with pytest.raises(PeerError, match="stopped"):
                    await fetch(b, DOCUMENT, Terms(force=True))
            if asked != "Join":
                wanted = Wanted(made.manifest.model.digest, made.manifest.layout.dtype)
                if asked == "Find":
                    b.network.prefix_indexes.put(a.transport.peer, a.own_prefix_index.reply(0))  # type: ignore[union-attr]
                    with pytest.raises(P2pDown):
                        await longest_cached_prefix(b, wanted, made.manifest.prefix.chain, 8, Terms())
                else:
                    assert await longest_cached_prefix(b, wanted, made.manifest.prefix.chain, 8, Terms()) is None
            blamed(b, a)

    run(body())
