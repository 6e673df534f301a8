"""What must not be served is not served: on either plane, at any moment, and nobody is told of it either."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact.layout import needed
from kvswap.artifact.specs import LayerSpec
from kvswap.core.errors import KvswapError, NotFound, PeerBusy, TokenRefused, Untrusted
from kvswap.core.ids import Cid
from kvswap.exchange import Node
from kvswap.exchange.verification.audits import receive_audits, refuse_if_failed
from kvswap.exchange.verification.status_records import own_status_record, receive_status_records
from kvswap.exchange.withdraw import withdraw
from kvswap.net import messages
from kvswap.net.bulk import BulkTarget
from kvswap.net.client import Session, session
from kvswap.store import Records
from kvswap.trust.status_record import artifacts_root, make_status_record
from tests.exchange.test_fetch import SERVICES, World, world
from tests.exchange.test_received import AUDITOR, audit
from tests.exchange.test_unwritten import FULL, takes_nothing
from tests.support import Ingested, key, make_artifact, run

OWN = key(1000)  # the first node's publisher
UNTRUSTED = key(7)
WIDE = (LayerSpec.key_value("full", 4, 64, 64),) * 6
RATE = 8_000_000


@pytest.fixture(scope="module")
def artifacts() -> dict[str, Ingested]:
    """By who signed them: two chunks of a megabyte, so that each takes a moment."""
    return {
        name: make_artifact(signer, tokens=1024, block_tokens=512, specs=WIDE, codec="raw", seed=number)
        for number, (name, signer) in enumerate((("own", OWN), ("stranger", UNTRUSTED)))
    }


# -- what makes it so that it must not be served -------------------------------------------------------


async def blocked(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    node.peers.block(peer, True)


async def throttled(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    node.peers.flooded(peer, "floods, in this test")


async def withdrawn(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    if made.manifest.publisher == node.identity.own:
        await withdraw(node, Cid.parse(made.id), "a typing error")
    else:
        head = make_status_record(UNTRUSTED, 5, int(time.time()) - 5, [], {made.id: "a typing error"})
        receive_status_records(node, [head.envelope], str(key(4000).peer_id))


async def expired(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    right = time.time
    patch.setattr(time, "time", lambda: right() + 3 * 86_400)


def _outcome(node: Node, made: Ingested, verdict: Any) -> None:
    from kvswap.store import Outcome
    from kvswap.trust.levels import RULES

    node.trust.records.put_outcome(
        Outcome(made.id, made.manifest.publisher, verdict, RULES, (1, 2, 3, 5), ("another",))
    )


async def disputed(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    _outcome(node, made, "disputed")


async def unlisted(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    _outcome(node, made, "wrong")


async def caught(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    node.trust.policy.ban(made.manifest.publisher, "it lied elsewhere", "another", "")


async def audited(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    """A trusted auditor's audit failed, and the user trusts the publisher again all the same."""
    node.trust.policy.add(str(AUDITOR.peer_id))
    receive_audits(node, [audit(made, "failed")], str(key(4000).peer_id), None)
    if made.manifest.publisher != node.identity.own:
        node.trust.policy.add(made.manifest.publisher)


async def removed(node: Node, made: Ingested, peer: str, patch: pytest.MonkeyPatch) -> None:
    node.store.remove(made.id)


State = Callable[[Node, Ingested, str, pytest.MonkeyPatch], Any]
STATES: list[tuple[State, str]] = [
    (blocked, "own"),
    (throttled, "own"),
    (withdrawn, "own"),
    (withdrawn, "stranger"),
    (expired, "own"),
    (expired, "stranger"),
    (disputed, "stranger"),
    (unlisted, "own"),
    (caught, "stranger"),
    (audited, "own"),
    (audited, "stranger"),
    (removed, "own"),
]
CASES = pytest.mark.parametrize(("state", "whose"), STATES, ids=[f"{s.__name__}-{w}" for s, w in STATES])
PLANES = pytest.mark.parametrize("plane", ["libp2p", "https"])


class Reader:
    """A peer that asks for chunks by hand."""

    def __init__(self, server: Node, node: Node, made: Ingested, pipe: Session) -> None:
        self.server, self.node, self.made, self.pipe = server, node, made, pipe
        self.peer = node.transport.peer  # type: ignore[union-attr]
        self.token = ""

    @property
    def chunks(self) -> list[Cid]:
        return [self.made.manifest.chunks[i].id for i in needed(self.made.manifest)]

    async def join(self) -> None:
        """Get a token."""
        me = messages.Provider(self.peer, [])
        reply = await self.pipe.ask(messages.Join(self.made.id, me, True), messages.JoinReply)
        assert reply.grant is not None
        self.token = reply.grant.token

    def target(self, token: str | None = None) -> BulkTarget:
        record = SERVICES[self.server].serving.bulk_record
        assert record is not None
        return BulkTarget(record.peer, "127.0.0.1", record.port, record.certificate, token or self.token)

    async def get(self, plane: str, cid: Cid, on_bytes: Callable[[int], None] = lambda _: None) -> bytes:
        into = bytearray(len(self.made.chunks[cid]))
        if plane == "https":
            await self.node.network.bulk.get(self.target(), cid, memoryview(into), on_bytes)
            return bytes(into)
        async with session(self.node.transport, self.server.transport.peer) as pipe:  # type: ignore[arg-type,union-attr]
            return await pipe.chunk(str(cid), len(into))


@asynccontextmanager
async def served(tmp_path: Path, made: Ingested) -> AsyncIterator[tuple[World, Reader]]:
    async with world(tmp_path) as w:
        settings: dict[str, Any] = {"bulk": True, "trust": False}
        a = await w.node(**settings, upload_bytes_per_second=RATE)
        b = await w.node(**settings)
        w.give(a, made)
        async with session(b.transport, a.transport.peer) as pipe:  # type: ignore[arg-type,union-attr]
            with contextlib.suppress(KvswapError):  # closing a stream that was cut off
                yield w, Reader(a, b, made, pipe)


@PLANES
@CASES
def test_nothing_is_served_from_that_moment(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    artifacts: dict[str, Ingested],
    state: State,
    whose: str,
    plane: str,
) -> None:
    """With everything in hand that was needed before: the id of a chunk, a token, a stream."""

    async def body() -> None:
        made = artifacts[whose]
        async with served(tmp_path, made) as (_, reader):
            await reader.join()
            first, second = reader.chunks[:2]
            assert await reader.get(plane, first) == made.chunks[first]
            before = reader.server.counters.bytes_out
            await state(reader.server, made, reader.peer, monkeypatch)
            for cid in (first, second):
                with pytest.raises((NotFound, PeerBusy, TokenRefused)):
                    await reader.get(plane, cid)
            assert reader.server.counters.bytes_out == before

    run(body())


@PLANES
@CASES
def test_what_is_on_its_way_stops(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    artifacts: dict[str, Ingested],
    state: State,
    whose: str,
    plane: str,
) -> None:
    async def body() -> None:
        made = artifacts[whose]
        async with served(tmp_path, made) as (_, reader):
            await reader.join()
            counters = reader.server.counters
            fetching = [asyncio.create_task(reader.get(plane, cid)) for cid in reader.chunks[:4]]
            while not counters.bytes_out:  # the pacer lets one piece, or one frame, go after the other
                await asyncio.sleep(0.005)
            await state(reader.server, made, reader.peer, monkeypatch)
            before = counters.bytes_out
            outcomes = await asyncio.gather(*fetching, return_exceptions=True)
            assert [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, KvswapError)] == []
            whole = sum(isinstance(outcome, bytes) for outcome in outcomes)
            assert whole <= (plane == "libp2p"), outcomes  # the frame that was under way
            assert counters.bytes_out <= before + 256 * 1024 * (plane == "https")  # a piece that was read already

    run(body())


@CASES
def test_nobody_is_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: dict[str, Ingested], state: State, whose: str
) -> None:
    """No offer, no manifest, no list of chunks, no token; not in the catalogue, nor in what it stands by."""

    async def body() -> None:
        made = artifacts[whose]
        async with served(tmp_path, made) as (w, reader):
            node, names = reader.server, made.manifest
            document = names.document.reference  # type: ignore[union-attr]
            by_chain = messages.Find("t", chain=[names.prefix.chain[-1]], bulk=True)
            finds = [messages.Find("t", document=document, bulk=True), messages.Find("t", artifact=made.id), by_chain]
            others = [messages.GetManifest(made.id), messages.Have(made.id)]
            others.append(messages.Join(made.id, messages.Provider(reader.peer, []), True))
            for find in finds:
                assert (await reader.pipe.ask(find, messages.FindReply)).found
            await state(node, made, reader.peer, monkeypatch)
            async with session(reader.node.transport, node.transport.peer) as pipe:  # type: ignore[arg-type,union-attr]
                for find in finds:
                    try:
                        reply = await pipe.ask(find, messages.FindReply)
                        assert reply.found == [] and reply.grant is None
                    except KvswapError:
                        assert state in (blocked, throttled)
                        return  # this peer is told nothing at all; others may be
                for request in others:
                    with pytest.raises(NotFound):
                        await pipe.ask(request, bytes)
                reply = await pipe.ask(messages.GetPrefixIndex(0), messages.PrefixIndexReply)
                assert reply.keys == b""
            heard = len([e for e in reader.node.events.recent() if e["event"] == "heard"])
            if node.store.get_artifact(made.id) is not None:
                await node.network.announce(made.id, document)
                assert len([e for e in reader.node.events.recent() if e["event"] == "heard"]) == heard
            if (head := own_status_record(node)) is not None:
                assert head.record.artifacts == 0 and head.record.catalogue == artifacts_root([])

    run(body())


@pytest.mark.parametrize("disk", ["writable", "full"])
def test_what_a_trusted_auditor_found_wrong_is_offered_as_little_as_it_is_used(
    tmp_path: Path, artifacts: dict[str, Ingested], disk: str
) -> None:
    """Until the auditor is trusted no more; whoever its publisher is by now."""

    async def body() -> None:
        async with world(tmp_path) as w:
            node, made = await w.node(trust=False), artifacts["stranger"]
            w.give(node, made)
            row = node.store.get_artifact(made.id)
            assert row is not None and node.trust.standings.of(row).name == "unverified"
            again = takes_nothing(node.trust.records, FULL) if disk == "full" else None
            await audited(node, made, "", pytest.MonkeyPatch())
            for trusted in (True, False):
                assert node.trust.standings.of(row).name == "wrong" and made.id in node.trust.standings.withheld()
                assert node.permission.withheld()[0] == {made.id}
                with pytest.raises(Untrusted, match="failed an audit"):
                    refuse_if_failed(node, made.statement)
                if trusted:
                    node.trust.policy.remove(made.manifest.publisher)
            node.trust.policy.remove(str(AUDITOR.peer_id))
            refuse_if_failed(node, made.statement)
            assert node.trust.standings.of(row).name == "unverified" and node.permission.withheld()[0] == set()
            if again is not None:
                again()
                return
            other = Records(tmp_path / "0" / "trust.sqlite3")
            assert other.withheld() == [made.id]
            other.close()

    run(body())


def test_the_chunks_of_what_was_withdrawn_are_deleted_at_once(tmp_path: Path, artifacts: dict[str, Ingested]) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False)
            for made in artifacts.values():
                w.give(node, made)
            await withdraw(node, Cid.parse(artifacts["own"].id), "")
            assert not [cid for cid in artifacts["own"].chunks if node.store.has_chunk(cid)]
            await withdrawn(node, artifacts["stranger"], "", pytest.MonkeyPatch())
            while node.store.used_bytes:
                await asyncio.sleep(0.01)
            assert not list(node.store._files.all())

    run(body())


def test_a_chunk_that_another_artifact_has_too_is_served_as_its(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            one, two = make_artifact(OWN, seed=3), make_artifact(UNTRUSTED, seed=3)
            assert one.id != two.id and one.chunks.keys() == two.chunks.keys()
            a, b = await w.node(trust=False), await w.node(trust=False)
            w.give(a, one)
            w.give(a, two)
            cid = next(iter(one.chunks))
            await withdraw(a, Cid.parse(one.id), "")
            async with session(b.transport, a.transport.peer) as pipe:  # type: ignore[arg-type,union-attr]
                assert await pipe.chunk(str(cid), len(one.chunks[cid])) == one.chunks[cid]
                _outcome(a, two, "disputed")
                with pytest.raises(NotFound):
                    await pipe.chunk(str(cid), len(one.chunks[cid]))
                a.trust.policy.add(two.manifest.publisher)  # no stranger disputes what the user trusts
                assert await pipe.chunk(str(cid), len(one.chunks[cid])) == one.chunks[cid]

    run(body())


def test_a_token_opens_what_was_asked_for_and_nothing_else(tmp_path: Path) -> None:
    async def body() -> None:
        wanted, other = make_artifact(OWN, seed=1), make_artifact(OWN, seed=2, text=b"another document")
        async with served(tmp_path, wanted) as (w, reader):
            w.give(reader.server, other)
            await reader.join()
            cid, foreign = reader.chunks[0], next(iter(other.chunks))
            assert await reader.get("https", cid) == wanted.chunks[cid]
            into = bytearray(len(other.chunks[foreign]))
            with pytest.raises(NotFound):
                await reader.node.network.bulk.get(reader.target(), foreign, memoryview(into))
            # asked for on the same stream, it is the same token
            me = messages.Provider(reader.peer, [])
            reply = await reader.pipe.ask(messages.Join(other.id, me, True), messages.JoinReply)
            assert reply.grant is not None and reply.grant.token == reader.token
            await reader.node.network.bulk.get(reader.target(), foreign, memoryview(into))
            assert bytes(into) == other.chunks[foreign]
            assert await reader.get("https", cid) == wanted.chunks[cid]

    run(body())


def test_who_is_blocked_is_hung_up_on_and_its_tokens_are_gone(tmp_path: Path, artifacts: dict[str, Ingested]) -> None:
    async def body() -> None:
        async with served(tmp_path, artifacts["own"]) as (_, reader):
            await reader.join()
            await reader.get("https", reader.chunks[0])
            node = reader.server
            node.peers.block(reader.peer, True)
            with pytest.raises(TokenRefused):
                SERVICES[node].serving.tokens.check(reader.token)
            while reader.peer in node.transport.connected() or SERVICES[node].serving.bulk_server.connections:  # type: ignore[union-attr]
                await asyncio.sleep(0.01)
            node.peers.block(reader.peer, False)
            async with session(reader.node.transport, node.transport.peer) as pipe:  # type: ignore[arg-type,union-attr]
                cid = reader.chunks[0]
                assert await pipe.chunk(str(cid), len(artifacts["own"].chunks[cid])) == artifacts["own"].chunks[cid]

    run(body())
