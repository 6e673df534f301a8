"""Look-ups among peers that lie about what there is and where: who has it is found all the same."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.core.errors import KvswapError, NotFound
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange import Node
from kvswap.exchange.discovery import lookup as finding
from kvswap.exchange.discovery import resolve as resolving
from kvswap.exchange.discovery.lookup import find
from kvswap.exchange.discovery.resolve import resolve
from kvswap.exchange.model_port import Wanted
from kvswap.exchange.node.prefix_index import pack_keys
from kvswap.exchange.prefix import longest_cached_prefix
from kvswap.exchange.request import Terms
from kvswap.net import Announcement, PeerAddress, messages
from kvswap.net.memory import MemoryTransport
from kvswap.store import Outcome
from kvswap.trust.levels import RULES
from tests.exchange.peers import Peer, found, has_nothing, made_up, never, promising
from tests.exchange.test_fetch import DOCUMENT, SERVICES, World, resigned, world
from tests.support import Ingested, key, make_artifact, run

DEAD = "/ip4/127.0.0.1/tcp/9"


def announce(
    node: Node, made: Ingested, peer: str, addresses: list[str], via: str | None = None, number: int | None = None
) -> None:
    """What GossipSub hands over: signed by `peer`, passed on by `via`."""
    provider = messages.Provider(peer, addresses)
    announced = messages.Announce(made.id if number is None else made_up(number), DOCUMENT, provider)
    SERVICES[node].on_announcement(Announcement(peer, messages.encode_announce(announced), *([via] if via else [])))


def flood(node: Node, made: Ingested, count: int, via: str, first: int = 0) -> None:
    """Announcements by so many made-up signers, all passed on by one peer."""
    for n in range(first, first + count):
        announce(node, made, str(key(5000 + n).peer_id), [f"/ip4/127.0.0.1/tcp/{2000 + n}"], via)


async def document(w: World) -> tuple[Node, Node, Ingested]:
    """(A reader, a node that has a document, the document.)"""
    made = make_artifact()
    reader, holder = await w.node(), await w.node()
    w.give(holder, made)
    return reader, holder, made


async def apart(one: Node, other: Node) -> None:
    """End the connection of two nodes."""
    await one.transport.disconnect(other.transport.peer)  # type: ignore[union-attr]


def peer_of(node: Node) -> str:
    return node.transport.peer  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [64, 300])
def test_announcements_of_many_signers_hide_no_connected_holder(tmp_path: Path, count: int) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, _, made = await document(w)
            flood(reader, made, count, via="a liar")
            for reference in (DOCUMENT, Cid.parse(made.id)):
                assert [str(r.statement.artifact) for r in await resolve(reader, reference)] == [made.id]

    run(body())


@pytest.mark.parametrize("invalid_senders", [1, 3])
def test_announcements_of_many_signers_hide_no_holder_that_announced_itself(
    tmp_path: Path, invalid_senders: int
) -> None:
    """Not connected any more, found by what it said of itself."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, made = await document(w)
            announce(reader, made, peer_of(holder), ["/memory/1"])
            await apart(reader, holder)
            for n in range(invalid_senders):
                flood(reader, made, 100, via=f"liar {n}", first=1000 * n)
            assert [str(r.statement.artifact) for r in await resolve(reader, DOCUMENT)] == [made.id]

    run(body())


def test_who_delivered_once_is_pushed_out_by_nothing_that_is_said(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, made = await document(w)
            reader.peers.record(peer_of(holder)).bytes_in = 1000
            announce(reader, made, peer_of(holder), ["/memory/1"], via="somebody")
            await apart(reader, holder)
            for n in range(200):  # each passed on by another peer
                flood(reader, made, 1, via=f"liar {n}", first=n)
            assert peer_of(holder) in [a.peer for a in reader.network.referrals(made.id)]
            assert [str(r.statement.artifact) for r in await resolve(reader, DOCUMENT)] == [made.id]

    run(body())


def test_a_referral_that_led_nowhere_is_dropped_and_others_have_their_turn(tmp_path: Path) -> None:
    """More made-up peers than one look-up asks at once, none of them connected."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, made = await document(w)
            await apart(reader, holder)
            for n in range(40):
                flood(reader, made, 1, via=f"liar {n}", first=n)
            announce(reader, made, peer_of(holder), ["/memory/1"])
            assert await find(reader, messages.Find("test", document=DOCUMENT))
            left = [a.peer for a in reader.network.referrals(DOCUMENT)]
            assert peer_of(holder) in left and len(left) < 41

    run(body())


def test_answers_that_refer_to_many_made_up_peers_hide_no_holder(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, made = await document(w)
            await apart(reader, holder)
            lies = [messages.Provider(str(key(5000 + n).peer_id), [DEAD]) for n in range(64)]
            for n in range(3):
                await Peer(w.network, 4000 + n, promising([], lies)).start(reader)

            async def refers(request: messages.Request) -> Any:
                if isinstance(request, messages.Find):
                    told = [messages.Provider(peer_of(holder), ["/memory/1"])]
                    return messages.FindReply("test", str(key(7).peer_id), [], told)
                return await has_nothing(request)

            await Peer(w.network, 4100, refers).start(reader)
            assert [str(r.statement.artifact) for r in await resolve(reader, DOCUMENT)] == [made.id]

    run(body())


@pytest.mark.parametrize("invalid_senders", [1, 2, 12])
def test_offers_without_a_manifest_hold_up_nobody(tmp_path: Path, invalid_senders: int) -> None:
    """64 made-up artifacts of each liar; one request after the other would take hours."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, _, made = await document(w)
            same = [found(n) for n in range(32)]  # liars that agree with each other
            for n in range(invalid_senders):
                own = [found(1000 * (n + 1) + i) for i in range(32)]
                await Peer(w.network, 4000 + n, promising(same + own)).start(reader)
            assert [str(r.statement.artifact) for r in await resolve(reader, DOCUMENT)] == [made.id]

    run(body())


def test_offers_that_look_better_than_the_honest_one_hold_up_nobody(tmp_path: Path) -> None:
    """Of a publisher who is trusted, with envelopes that are none, and the honest one without its envelope."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, made = await document(w)
            await apart(reader, holder)

            async def honest(request: messages.Request) -> Any:
                if isinstance(request, messages.Find):
                    row = found(0, artifact=made.id, publisher=made.manifest.publisher)
                    return messages.FindReply("test", str(key(7).peer_id), [row], [])
                if isinstance(request, messages.GetManifest):
                    return made.statement.envelope
                return await has_nothing(request)

            publisher = str(key().peer_id)
            for n in range(6):
                lies = [
                    found(1000 * n + i, publisher=publisher, envelope=b"no envelope" if i % 2 else None)
                    for i in range(64)
                ]
                await Peer(w.network, 4000 + n, promising(lies)).start(reader)
            await Peer(w.network, 4100, honest).start(reader)
            assert [str(r.statement.artifact) for r in await resolve(reader, DOCUMENT)] == [made.id]

    run(body())


def test_a_look_up_of_peers_that_never_answer_ends_by_one_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "LIMITS", replace(LIMITS, resolve_seconds=6.0))

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node()

            async def frozen(request: messages.Request) -> Any:
                await never()

            for n in range(20):
                await Peer(w.network, 4000 + n, frozen if n % 2 else promising([found(n)])).start(reader)
            with pytest.raises(KvswapError):
                await resolve(reader, DOCUMENT)

    run(body())


def test_who_delivered_before_is_waited_for_while_nobody_else_offers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood that keeps both sides busy makes its answer late; no other is on its way."""
    monkeypatch.setattr(finding, "LIMITS", replace(LIMITS, lookup_seconds=0.3))

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, made = await w.node(), make_artifact()

            async def slowly(request: messages.Request) -> Any:
                await asyncio.sleep(1.0)
                return messages.FindReply("test", str(key(7).peer_id), [found(1)], [])

            slow = await Peer(w.network, 4000, slowly).start(reader)
            reader.peers.record(slow.id).bytes_in = 1
            for _ in range(2):
                offers = await find(reader, messages.Find("test", document=DOCUMENT), 0.3)
                assert [o.peer for o in offers] == [slow.id]
            w.give(holder := await w.node(), made)
            offers = await find(reader, messages.Find("test", document=DOCUMENT), 0.3)
            assert peer_of(holder) in {o.peer for o in offers}

    run(body())


def test_who_delivered_before_is_asked_again_after_a_failure_or_two(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, _ = await document(w)
            stranger = await Peer(w.network, 4000, has_nothing).start(reader)
            reader.peers.record(peer_of(holder)).bytes_in = 1
            for _ in range(2):
                reader.peers.failed(peer_of(holder), "no answer")
                reader.peers.failed(stranger.id, "no answer")
                assert not reader.peers.backoff_seconds(peer_of(holder)) and reader.peers.backoff_seconds(stranger.id)
                offers = await find(reader, messages.Find("test", document=DOCUMENT))
                assert [o.peer for o in offers] == [peer_of(holder)]
            reader.peers.failed(peer_of(holder), "no answer")
            assert reader.peers.backoff_seconds(peer_of(holder))
            reader.peers.record(peer_of(holder)).worked()
            reader.peers.sent_invalid_data(peer_of(holder), "wrong bytes")
            assert reader.peers.backoff_seconds(peer_of(holder)) > 1000

    run(body())


def test_a_wrong_address_is_not_held_against_the_peer_it_is_said_to_be_of(tmp_path: Path) -> None:
    """A liar refers to an honest peer, which then comes by itself."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact()
            reader = await w.node()
            holder = MemoryTransport(w.network, str(key(3000).peer_id))
            lie = messages.Provider(holder.peer, [DEAD])
            await Peer(w.network, 4000, promising([], [lie])).start(reader)
            for _ in range(6):
                announce(reader, made, holder.peer, [DEAD], via="a liar")
                assert not await find(reader, messages.Find("test", document=DOCUMENT), seconds=0.3)
            assert reader.peers.record(holder.peer).failures == 0 and not reader.peers.backoff_seconds(holder.peer)

            async def honest(request: messages.Request) -> Any:
                if isinstance(request, messages.Find):
                    row = found(0, artifact=made.id, envelope=made.statement.envelope)
                    return messages.FindReply("test", str(key(7).peer_id), [row], [])
                return await has_nothing(request)

            await Peer(w.network, 3000, honest).start(reader)
            assert [str(r.statement.artifact) for r in await resolve(reader, DOCUMENT)] == [made.id]

    run(body())


def test_an_address_that_led_nowhere_is_left_alone_for_a_while_whoever_names_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact()
            reader = await w.node()
            dialled: list[str] = []
            connect = reader.transport.connect  # type: ignore[union-attr]

            async def counted(address: PeerAddress) -> None:
                dialled.extend(address.addresses)
                await connect(address)

            reader.transport.connect = counted  # type: ignore[union-attr,method-assign]
            for n in range(30):
                announce(reader, made, str(key(5000 + n).peer_id), [DEAD], via=f"liar {n}")
                await find(reader, messages.Find("test", document=DOCUMENT), seconds=0.3)
            assert dialled.count(DEAD) <= 10

    run(body())


def test_a_new_connection_ends_a_pause_after_failures_but_not_after_a_lie(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, _ = await document(w)
            for _ in range(6):
                reader.peers.failed(peer_of(holder), "no answer")
            assert reader.peers.backoff_seconds(peer_of(holder))
            await apart(reader, holder)
            assert reader.peers.backoff_seconds(peer_of(holder))
            await holder.transport.connect(PeerAddress(peer_of(reader)))  # type: ignore[union-attr]
            assert not reader.peers.backoff_seconds(peer_of(holder))
            reader.peers.failed(peer_of(holder), "no answer")
            assert reader.peers.backoff_seconds(peer_of(holder)) > 60  # what it did before counts as before
            reader.peers.sent_invalid_data(peer_of(holder), "wrong bytes")
            await apart(reader, holder)
            await holder.transport.connect(PeerAddress(peer_of(reader)))  # type: ignore[union-attr]
            assert reader.peers.backoff_seconds(peer_of(holder)) > 1000

    run(body())


@pytest.mark.parametrize("invalid_senders", [1, 5])
@pytest.mark.parametrize("offers", [False, True], ids=["nothing behind it", "made-up offers behind it"])
def test_a_catalogue_that_claims_more_hides_no_honest_one(tmp_path: Path, invalid_senders: int, offers: bool) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=64, block_tokens=8)
            reader, holder = await w.node(), await w.node()
            w.give(holder, made)
            chain = [*made.manifest.prefix.chain, *(bytes([n]) * 32 for n in range(60))]

            def claiming(n: int) -> Any:
                promised = promising([found(100 * n + i, shared_blocks=60) for i in range(64)] if offers else [])

                async def answering(request: messages.Request) -> Any:
                    if isinstance(request, messages.GetPrefixIndex):
                        return messages.PrefixIndexReply(1, pack_keys(chain[: len(chain) - n]))
                    return await promised(request)

                return answering

            for n in range(invalid_senders):
                await Peer(w.network, 4000 + n, claiming(n)).start(reader)
            wanted = Wanted(made.manifest.model.digest, made.manifest.layout.dtype)
            for _ in range(2):
                cached_prefix = await longest_cached_prefix(reader, wanted, chain, 8, Terms())
                assert cached_prefix is not None and cached_prefix.tokens == 64
                assert cached_prefix.peers == (peer_of(holder),)

    run(body())


@pytest.mark.parametrize(
    "lie", ["only claimed", "with another's envelope", "with a forged envelope", "given another's"]
)
def test_who_claims_an_honest_peers_artifact_is_shorter_than_it_says_harms_nobody_but_itself(
    tmp_path: Path, lie: str
) -> None:
    """A liar claims 68 blocks, and names what an honest peer has: eight of them, as that one said."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=64, block_tokens=8)
            other = make_artifact(tokens=16, block_tokens=8, seed=3, text=b"another")
            reader, holder = await w.node(), await w.node()
            w.give(holder, made)
            chain = [*made.manifest.prefix.chain, *(bytes([n]) * 32 for n in range(60))]
            envelope = {"with another's envelope": other.statement.envelope, "with a forged envelope": b"forged"}.get(
                lie
            )
            offer = found(0, artifact=made.id, publisher=made.manifest.publisher, envelope=envelope)
            promised = promising([offer])

            async def answering(request: messages.Request) -> Any:
                if isinstance(request, messages.GetPrefixIndex):
                    return messages.PrefixIndexReply(1, pack_keys(chain))
                if isinstance(request, messages.GetManifest) and lie == "given another's":
                    return other.statement.envelope
                return await promised(request)

            sends_invalid_data = await Peer(w.network, 4000, answering).start(reader)
            wanted = Wanted(made.manifest.model.digest, made.manifest.layout.dtype)
            cached_prefix = await longest_cached_prefix(reader, wanted, chain, 8, Terms())
            assert cached_prefix is not None and cached_prefix.tokens == 64
            assert list(reader.network.prefix_indexes.false_indexes) == [sends_invalid_data.id]
            assert reader.network.prefix_indexes.table.peek(peer_of(holder)) is not None

    run(body())


def test_what_was_found_wrong_here_is_not_held_against_who_has_it(tmp_path: Path) -> None:
    """It gave what it offered; that we do not use it says nothing of its catalogue."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=64, block_tokens=8)
            reader, holder = await w.node(), await w.node()
            w.give(holder, made)
            reader.trust.records.put_outcome(
                Outcome(made.id, made.manifest.publisher, "wrong", RULES, why="it differs")
            )
            wanted = Wanted(made.manifest.model.digest, made.manifest.layout.dtype)
            assert await longest_cached_prefix(reader, wanted, made.manifest.prefix.chain, 8, Terms()) is None
            assert list(reader.network.prefix_indexes.false_indexes) == []

    run(body())


def test_a_holder_is_not_held_to_what_its_publisher_signed(tmp_path: Path) -> None:
    """The chain is right where a reader looks for it, and not at its beginning: who holds it told the truth."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=64, block_tokens=8)
            chain = made.manifest.prefix.chain
            odd = resigned(
                made, key(), prefix=msgspec.structs.replace(made.manifest.prefix, chain=[bytes(32), *chain[1:]])
            )
            reader, holder = await w.node(), await w.node()
            w.give(holder, odd)
            wanted = Wanted(made.manifest.model.digest, made.manifest.layout.dtype)
            assert await longest_cached_prefix(reader, wanted, chain, 8, Terms()) is None
            assert reader.network.prefix_indexes.best(chain)[0] == len(chain)
            assert list(reader.network.prefix_indexes.false_indexes) == []

    run(body())


def test_what_was_removed_meanwhile_is_not_held_against_who_had_it(tmp_path: Path) -> None:
    """Its catalogue was true when it was heard; what it still has is found in the new one, at once."""

    async def body() -> None:
        async with world(tmp_path) as w:
            long = make_artifact(tokens=64, block_tokens=8)
            chain = long.manifest.prefix.chain
            prefix = make_artifact(tokens=32, block_tokens=8, text=b"another").manifest.prefix
            short = make_artifact(
                tokens=32,
                block_tokens=8,
                text=b"another",
                prefix=msgspec.structs.replace(prefix, chain=chain[:4]),
            )
            reader, holder = await w.node(), await w.node()
            w.give(holder, long)
            w.give(holder, short)
            wanted = Wanted(long.manifest.model.digest, long.manifest.layout.dtype)
            whole = await longest_cached_prefix(reader, wanted, chain, 8, Terms())
            assert whole is not None and whole.tokens == 64
            holder.store.remove(long.id)
            rest = await longest_cached_prefix(reader, wanted, chain, 8, Terms())
            assert rest is not None and rest.tokens == 32 and rest.peers == (peer_of(holder),)
            assert list(reader.network.prefix_indexes.false_indexes) == []

    run(body())


def test_who_takes_back_what_it_claims_each_time_it_is_asked_is_believed_no_more(tmp_path: Path) -> None:
    """A catalogue that changes under a look-up costs the reader a request, so nobody may have many."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact(tokens=64, block_tokens=8)
            chain, version = made.manifest.prefix.chain, [0]
            reader = await w.node()

            async def turning(request: messages.Request) -> Any:
                if isinstance(request, messages.GetPrefixIndex):
                    version[0] += 1
                    return messages.PrefixIndexReply(version[0], pack_keys(chain if version[0] % 2 else []))
                return await has_nothing(request)

            sends_invalid_data = await Peer(w.network, 4000, turning).start(reader)
            wanted = Wanted(made.manifest.model.digest, made.manifest.layout.dtype)
            for _ in range(3):
                assert sends_invalid_data.id not in reader.network.prefix_indexes.false_indexes
                assert await longest_cached_prefix(reader, wanted, chain, 8, Terms()) is None
                reader.network.prefix_indexes.expire(sends_invalid_data.id)
            assert sends_invalid_data.id in reader.network.prefix_indexes.false_indexes

    run(body())


@pytest.mark.parametrize("wrong", ["another's", "forged"])
def test_a_wrong_envelope_does_not_hide_the_right_one(tmp_path: Path, wrong: str) -> None:
    """It came along with a liar's offer of what an honest peer has, which is asked for it all the same."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, made = await document(w)
            other = make_artifact(tokens=16, block_tokens=8, seed=3, text=b"another")
            envelope = other.statement.envelope if wrong == "another's" else b"forged"

            async def honest(request: messages.Request) -> Any:
                if isinstance(request, messages.Find):
                    row = found(0, artifact=made.id, publisher=made.manifest.publisher)
                    return messages.FindReply("test", str(key(7).peer_id), [row], [])
                if isinstance(request, messages.GetManifest):
                    return made.statement.envelope
                return await has_nothing(request)

            await apart(reader, holder)
            lie = found(0, artifact=made.id, publisher=made.manifest.publisher, envelope=envelope)
            await Peer(w.network, 4000, promising([lie])).start(reader)
            right = await Peer(w.network, 4100, honest).start(reader)
            (usable,) = await resolve(reader, Cid.parse(made.id))
            assert str(usable.statement.artifact) == made.id and right.id in usable.peers

    run(body())


def test_nothing_is_found_where_there_is_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, _ = await w.node(), await w.node()
            with pytest.raises(NotFound):
                await resolve(reader, DOCUMENT)
            await asyncio.sleep(0)

    run(body())


def failed_often(node: Node, peer: str, *, gave: bool) -> None:
    """Failures in a row, as of a machine too busy to answer, from after the connection was made."""
    record = node.peers.record(peer)
    record.bytes_in = 1000 if gave else 0
    for _ in range(6):
        record.failed(time.time() + 1.0)
    assert node.peers.backoff_seconds(peer) > 0


def test_a_connected_peer_that_delivered_is_asked_before_nobody_offers_is_said(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, made = await document(w)
            failed_often(reader, peer_of(holder), gave=True)
            for reference in (DOCUMENT, Cid.parse(made.id)):
                assert [str(r.statement.artifact) for r in await resolve(reader, reference)] == [made.id]

    run(body())


@pytest.mark.parametrize("why", ["lied", "blocked", "never delivered"])
def test_who_rests_for_more_than_failures_is_not_asked(why: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader, holder, _ = await document(w)
            failed_often(reader, peer_of(holder), gave=why != "never delivered")
            if why == "lied":
                reader.peers.record(peer_of(holder)).count_invalid_data(time.time())
            if why == "blocked":
                reader.peers.record(peer_of(holder)).blocked = True
            with pytest.raises(NotFound, match="nobody offers") as caught:
                await resolve(reader, DOCUMENT)
            assert "1 of 1 connected peers was not asked or did not answer" in (caught.value.cause or "")

    run(body())


def test_who_is_blocked_or_lied_is_not_asked_however_many_peers_delivered(tmp_path: Path) -> None:
    """More than there are places for: what the user said, and what a peer did, is remembered all the same."""

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            for number in range(5000):
                node.peers.record(f"peer {number}").bytes_in = 1
            bad, sends_invalid_data = str(key(4000).peer_id), str(key(4001).peer_id)
            node.peers.block(bad, True)
            node.peers.sent_invalid_data(sends_invalid_data, "wrong bytes")
            for number in range(5000):
                node.peers.failed(f"stranger {number}", "no answer")
            assert node.ledger.blocked(bad) and node.peers.backoff_seconds(bad) == float("inf")
            assert (
                node.peers.backoff_seconds(sends_invalid_data) > 3500
                and node.peers.backoff_seconds("stranger 4999") > 0
            )

    run(body())


def test_silence_is_not_told_as_a_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "LIMITS", replace(LIMITS, lookup_seconds=1.5, request_seconds=1.5))

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node()

            async def frozen(request: messages.Request) -> Any:
                await never()

            await Peer(w.network, 4000, frozen).start(reader)
            await Peer(w.network, 4001, has_nothing).start(reader)
            with pytest.raises(NotFound, match="nobody offers") as caught:
                await resolve(reader, DOCUMENT)
            assert "1 of 2 connected peers was not asked or did not answer" in (caught.value.cause or "")

    run(body())
