"""Peers that went away: dialled ever more seldom, told of once, and found at once when they come back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvswap.exchange import Node
from kvswap.exchange.discovery.lookup import find
from kvswap.exchange.node.address_book import RECORDS, AddressBook
from kvswap.net import PeerAddress, messages
from kvswap.net.dialling import JUDGED
from kvswap.net.memory import MemoryTransport
from tests.exchange.peers import Peer, found, has_nothing
from tests.exchange.test_fetch import DOCUMENT, World, world
from tests.exchange.test_lookup import announce, apart, peer_of
from tests.support import Ingested, key, make_artifact, run

QUERY = messages.Find("test", document=DOCUMENT)


class Away:
    """A reader whose clock stands still until it is moved, and what it dials."""

    def __init__(self, reader: Node) -> None:
        self.reader = reader
        self.dialled: Counter[str] = Counter()
        self.now = 1000.0
        self._connect = reader.transport.connect  # type: ignore[union-attr]
        reader.transport.connect = self._counted  # type: ignore[union-attr,method-assign]
        reader.network.address_book._clock = lambda: self.now

    async def _counted(self, address: PeerAddress) -> None:
        self.dialled[address.peer] += 1
        await self._connect(address)

    async def look(self, after: float = 0.0, seconds: float = 0.1) -> list[str]:
        """Look the document up; who offers it."""
        self.now += after
        return [offer.peer for offer in await find(self.reader, QUERY, seconds)]

    def events(self, kind: str = "unreached") -> Counter[str]:
        return Counter(e["peer"] for e in self.reader.events.recent(1000) if e["event"] == kind)


def place(number: int) -> list[str]:
    return [f"/ip4/127.0.0.1/tcp/{3000 + number}"]


async def back(w: World, number: int, made: Ingested) -> str:
    """A peer that offers the document, connected to nobody."""

    async def honest(request: messages.Request) -> Any:
        if isinstance(request, messages.Find):
            row = found(0, artifact=made.id, envelope=made.statement.envelope)
            return messages.FindReply("test", str(key(7).peer_id), [row], [])
        return await has_nothing(request)

    return (await Peer(w.network, number, honest).start()).id


def test_a_peer_that_went_away_is_told_of_once_and_dialled_ever_more_seldom(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made = make_artifact()
            away = Away(await w.node())
            dead = [str(key(5000 + n).peer_id) for n in range(5)]
            for _ in range(30):
                for n, peer in enumerate(dead):  # others go on naming them
                    announced = messages.Provider(peer, place(n))
                    away.reader.network.address_book.refer(DOCUMENT, announced, f"sender {n}")
                await away.look(5.0)
            assert away.events() == Counter(dead)
            assert set(away.dialled) == set(dead) and max(away.dialled.values()) <= 7
            assert made.id  # nobody offers it

    run(body())


def gone(away: Away, made: Ingested, peer: str, number: int) -> Any:
    """A coroutine: it announced itself, and was dialled in vain until that is paused for minutes."""

    async def body() -> None:
        announce(away.reader, made, peer, place(number), via="somebody")
        for _ in range(9):
            away.reader.network.address_book.refer(DOCUMENT, messages.Provider(peer, place(number)), "somebody")
            await away.look(300.0)
        tried = away.dialled[peer]
        away.reader.network.address_book.refer(DOCUMENT, messages.Provider(peer, place(number)), "somebody")
        assert not await away.look(60.0) and away.dialled[peer] == tried, "it is not paused"

    return body()


def test_a_peer_that_announces_itself_is_found_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, peer = make_artifact(), str(key(3000).peer_id)
            away = Away(await w.node())
            await gone(away, made, peer, 1)
            assert await back(w, 3000, made) == peer
            assert not await away.look()
            announce(away.reader, made, peer, place(1), via="somebody else")
            assert await away.look() == [peer]

    run(body())


def test_a_peer_that_was_connected_again_is_dialled_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, peer = make_artifact(), str(key(3000).peer_id)
            away = Away(await w.node())
            await gone(away, made, peer, 1)
            await back(w, 3000, made)
            its: MemoryTransport = w.network.nodes[peer]
            await its.connect(PeerAddress(peer_of(away.reader)))
            assert await away.look() == [peer]
            await its.disconnect(peer_of(away.reader))
            away.now += 1.0
            away.reader.network.address_book.refer(DOCUMENT, messages.Provider(peer, place(1)), "somebody")
            assert await away.look() == [peer]

    run(body())


def test_who_delivered_is_dialled_in_spite_of_a_pause_where_nobody_else_offers(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, peer = make_artifact(), str(key(3000).peer_id)
            away = Away(reader := await w.node())
            await gone(away, made, peer, 1)
            reader.peers.record(peer).bytes_in = 1000
            await back(w, 3000, made)
            other = await w.node()
            w.give(other, made)
            tried = away.dialled[peer]
            assert await away.look() == [peer_of(other)] and away.dialled[peer] == tried
            await apart(reader, other)
            await other.stop()
            assert await away.look() == [peer] and away.dialled[peer] > tried

    run(body())


def test_who_announces_itself_again_and_again_is_not_dialled_as_often(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, peer = make_artifact(), str(key(3000).peer_id)
            away = Away(await w.node())
            for _ in range(40):
                announce(away.reader, made, peer, place(1), via="somebody")
                await away.look(1.0)
            assert away.dialled[peer] <= 9
            assert away.events() == Counter([peer])

    run(body())


@pytest.mark.parametrize("vias", [1, 3, 4], ids=["by one sender", "by three senders", "by as many as there are names"])
def test_names_at_a_peers_address_take_not_the_place_of_what_it_announces(tmp_path: Path, vias: int) -> None:
    """Whoever passed it on; and one address leads to three of them at most."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made, peer = make_artifact(), str(key(3000).peer_id)
            away = Away(await w.node())
            for n in range(12):
                announce(away.reader, made, str(key(5000 + n).peer_id), place(1), via=f"somebody {n % vias}")
            announce(away.reader, made, peer, place(1), via="somebody 0")
            known = [a.peer for a in away.reader.network.referrals(DOCUMENT)]
            assert peer in known and len(known) <= 3
            assert await back(w, 3000, made) == peer
            assert await away.look(seconds=60.0) == [peer]

    run(body())


@pytest.mark.parametrize("how", ["it gave something", "it announced itself on its own connection"])
def test_who_was_there_loses_its_place_to_no_names_at_its_address(tmp_path: Path, how: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            made, peer = make_artifact(), str(key(3000).peer_id)
            away = Away(reader := await w.node())
            if how == "it gave something":
                reader.peers.record(peer).bytes_in = 1000
            announce(reader, made, peer, place(1), via=None if "itself" in how else "somebody")
            for n in range(20):
                announce(reader, made, str(key(5000 + n).peer_id), place(1), via=f"somebody {n}")
            known = [a.peer for a in reader.network.referrals(DOCUMENT)]
            assert peer in known and len(known) <= 3
            assert away.dialled == {}

    run(body())


@pytest.mark.parametrize("how", ["a provider record", "another sender"])
def test_names_at_a_peers_address_that_led_nowhere_hide_it_not(tmp_path: Path, how: str) -> None:
    """Three of them, tried in vain: told by three peers and the right one is in the DHT, or all by one peer."""

    async def body() -> None:
        async with world(tmp_path) as w:
            made, peer = make_artifact(), str(key(3000).peer_id)
            away = Away(reader := await w.node())
            assert await back(w, 3000, made) == peer
            for n in range(3):
                via = f"liar {n}" if how == "a provider record" else "a liar"
                announce(reader, made, str(key(5000 + n).peer_id), place(1), via=via)
                assert not await away.look()
            assert sum(away.dialled.values()) == 3

            async def records(name: bytes) -> list[PeerAddress]:
                return [PeerAddress(peer, tuple(place(1)), JUDGED)]

            if how == "a provider record":
                reader.transport.find_providers = records  # type: ignore[union-attr,method-assign]
            else:
                announce(reader, made, peer, place(1), via="another")
            assert await away.look(seconds=60.0) == [peer]

    run(body())


@pytest.mark.parametrize("sender", ["a liar", RECORDS])
def test_a_teller_whose_names_led_nowhere_is_believed_less_and_less_of_an_address(sender: str) -> None:
    """So nobody makes a node dial an address again and again, whoever it says is there."""
    now = [1000.0]
    address_book = AddressBook(lambda peer: False, lambda: now[0])
    tried = 0
    for n in range(600):
        address = PeerAddress(str(n), tuple(place(1)))
        if address_book.reachable(address, sender) is not None:
            address_book.unreached(address, sender)
            tried += 1
        now[0] += 1.0
    assert tried <= 12
