"""Who announces what is here is asked whether its publisher still stands by it: nobody's silence holds that up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import P2pDown
from kvswap.exchange import Node
from kvswap.exchange.discovery import lookup as finding
from kvswap.net import Announcement, messages
from kvswap.store.unwritten import ReceivedStatusRecord
from kvswap.trust.status_record import make_status_record
from tests.exchange.peers import Peer, never
from tests.exchange.test_fetch import DOCUMENT, SERVICES, World, world
from tests.support import Ingested, key, make_artifact, run

PUBLISHER = key()
NAME = str(PUBLISHER.peer_id)


def announce(node: Node, made: Ingested, peer: Peer) -> None:
    announced = messages.Announce(made.id, DOCUMENT, messages.Provider(peer.id, []))
    SERVICES[node].on_announcement(Announcement(peer.id, messages.encode_announce(announced)))


def head(sequence: int, withdrawn: dict[str, str]) -> bytes:
    return make_status_record(PUBLISHER, sequence, int(time.time()) - 5, [], withdrawn).envelope


async def peer(w: World, number: int, reader: Node, heads: Callable[[], Any]) -> Peer:
    """One that said it is the publisher, and gives these heads with each answer."""

    async def answering(request: messages.Request) -> Any:
        if isinstance(request, messages.Find):
            return messages.FindReply("test", NAME, [], [], heads=await heads())
        return messages.PrefixIndexReply(1, b"")

    made = await Peer(w.network, number, answering).start(reader)
    with reader.ledger.changing(made.id) as known:
        known.publisher = NAME
    return made


def asked(one: Peer) -> int:
    return sum(isinstance(request, messages.Find) for request in one.heard)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("invalid_senders", [1, 12, 40])
def test_a_withdrawal_waits_for_no_silent_peers(tmp_path: Path, invalid_senders: int) -> None:
    """Each of them said it is the publisher, and announced all that is here of it before the publisher did."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node()
            held = [make_artifact(tokens=16, seed=n) for n in range(6)]
            for made in held:
                w.give(reader, made)

            async def withdraws() -> list[bytes]:
                return [head(2, {held[-1].id: "an error"})]

            silent = [await peer(w, 4000 + n, reader, never) for n in range(invalid_senders)]
            right = await peer(w, 4900, reader, withdraws)
            for one in silent:
                for made in held:
                    announce(reader, made, one)
            announce(reader, held[-1], right)
            await until(lambda: reader.store.get_artifact(held[-1].id) is None)
            assert max(asked(one) for one in silent) <= 1

    run(body())


@pytest.mark.parametrize("gives", ["nothing", "another's head", "the head of now, late"])
def test_who_has_no_word_of_the_publisher_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives: str
) -> None:
    monkeypatch.setattr("kvswap.exchange.discovery.status_queries._SLOW_SECONDS", 0.0 if "late" in gives else 60.0)

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, made = await w.node(), make_artifact(tokens=16)
            w.give(reader, made)
            now = head(1, {})
            reader.trust.records.receive_status_record(NAME, ReceivedStatusRecord(1, now, {}))

            async def vain() -> list[bytes]:
                other = make_status_record(key(9), 1, int(time.time()), [], {}).envelope
                return {"nothing": [], "another's head": [other]}.get(gives, [now])

            one = await peer(w, 4000, reader, vain)
            announce(reader, made, one)
            await until(
                lambda: not len(SERVICES[reader].status_queries.table) and not SERVICES[reader].status_queries.under_way
            )
            assert asked(one) == 1
            announce(reader, made, one)
            assert not len(SERVICES[reader].status_queries.table) and not SERVICES[reader].status_queries.under_way

    run(body())


def test_a_publisher_that_says_the_same_is_asked_each_time_it_announces(tmp_path: Path) -> None:
    """Until it says something else, which is heard at once."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, made = await w.node(), make_artifact(tokens=16)
            w.give(reader, made)
            told = [head(1, {})]

            async def right() -> list[bytes]:
                return told[-1:]

            one = await peer(w, 4000, reader, right)
            for times in (1, 2, 3):
                announce(reader, made, one)
                await until(
                    lambda: (
                        not len(SERVICES[reader].status_queries.table) and not SERVICES[reader].status_queries.under_way
                    )
                )
                assert asked(one) == times
            told.append(head(2, {made.id: "an error"}))
            announce(reader, made, one)
            await until(lambda: reader.store.get_artifact(made.id) is None)

    run(body())


def test_our_own_trouble_makes_nobody_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends a look-up here says nothing of who was asked."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader, made = await w.node(), make_artifact(tokens=16)
            w.give(reader, made)

            async def withdraws() -> list[bytes]:
                return [head(2, {made.id: "an error"})]

            async def fails(*arguments: Any, **named: Any) -> Any:
                raise P2pDown("it stopped")

            one = await peer(w, 4000, reader, withdraws)
            with monkeypatch.context() as broken:
                broken.setattr(finding, "find", fails)
                announce(reader, made, one)
                await until(
                    lambda: (
                        not len(SERVICES[reader].status_queries.table) and not SERVICES[reader].status_queries.under_way
                    )
                )
            announce(reader, made, one)
            await until(lambda: reader.store.get_artifact(made.id) is None)

    run(body())
