"""Where V6 finds the fingerprints of others, among peers that offer much and give little."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact.manifest import FileRef
from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.exchange.discovery.fingerprints import SignedFingerprint, agree, fingerprints_of_others
from kvswap.net import messages
from tests.exchange.peers import Peer, found, has_nothing, promising
from tests.exchange.test_fetch import world
from tests.support import SLIDING, Ingested, key, make_artifact, run


@cache
def signed(signer: int, what: bytes = b"right") -> Ingested:
    """An artifact of the same tokens as every other one here, with this fingerprint."""
    mark = what.ljust(96)
    made = make_artifact(key(signer), fingerprint=FileRef(bytes(Cid.of(mark)), len(mark)))
    made.chunks[Cid.of(mark)] = mark
    return made


def offering(made: list[Ingested], *, marks: bool = True, count: list[int] | None = None) -> Any:
    """Answer for these as whoever holds them would; `count`: notes how many manifests are asked for at once."""
    under_way = [0]

    async def answering(request: messages.Request) -> Any:
        if isinstance(request, messages.Find):
            rows = [found(0, artifact=m.id, publisher=m.manifest.publisher) for m in made]
            return messages.FindReply("test", made[0].manifest.publisher, rows, [])
        if isinstance(request, messages.GetManifest):
            under_way[0] += 1
            if count is not None:
                count.append(under_way[0])
            await asyncio.sleep(0)
            under_way[0] -= 1
            return next(m.statement.envelope for m in made if m.id == request.artifact)
        if isinstance(request, messages.GetChunk) and marks:
            return next(m.chunks[c] for m in made for c in m.chunks if str(c) == request.cid)
        return await has_nothing(request)

    return answering


@pytest.mark.parametrize("said_to_be_by", ["the reader", "a trusted publisher", "nobody in particular"])
def test_offers_that_are_never_given_hide_no_stranger(tmp_path: Path, said_to_be_by: str) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node(trust=False)
            reader.trust.policy.add(str(key(90).peer_id))
            told = {"the reader": reader.trust.policy.policy.own, "a trusted publisher": str(key(90).peer_id)}
            by = told.get(said_to_be_by, str(key(91).peer_id))

            async def lying(request: messages.Request) -> Any:
                if isinstance(request, messages.GetManifest):
                    raise NotFound("it is not here")
                return await promising([found(n, publisher=by) for n in range(64)])(request)

            for number in range(3):
                await Peer(w.network, 4000 + number, lying).start(reader)
            await Peer(w.network, 4100, offering([signed(11)])).start(reader)
            marks = await fingerprints_of_others(reader, signed(10).statement)
            assert [mark.publisher for mark in marks] == [str(key(11).peer_id)]

    run(body())


def test_many_keys_with_one_fingerprint_leave_room_for_every_other(tmp_path: Path) -> None:
    """Of each fingerprint there is one before there are two of any."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node(trust=False)
            sybils = [signed(20 + number, b"lie") for number in range(12)]
            peers = [
                await Peer(w.network, 4000 + number, offering([sybil])).start(reader)
                for number, sybil in enumerate(sybils)
            ]

            async def last(request: messages.Request) -> Any:
                while not all(peer.heard for peer in peers):
                    await asyncio.sleep(0)
                return await offering([signed(11)])(request)

            await Peer(w.network, 4100, last).start(reader)
            marks = await fingerprints_of_others(reader, signed(10).statement)
            assert len(marks) == 8 and {mark.data.strip() for mark in marks} == {b"lie", b"right"}

    run(body())


def test_of_trusted_publishers_none_gives_way_to_strangers(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node(trust=False)
            reader.trust.policy.add(str(key(11).peer_id))
            for number in range(12):
                await Peer(w.network, 4000 + number, offering([signed(20 + number, b"%d" % number)])).start(reader)
            await Peer(w.network, 4100, offering([signed(11)])).start(reader)
            marks = await fingerprints_of_others(reader, signed(10).statement)
            assert len(marks) == 8 and marks[0].publisher == str(key(11).peer_id)

    run(body())


def test_who_names_anothers_artifact_and_keeps_its_fingerprint_hides_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node(trust=False)
            for number in range(2):
                await Peer(w.network, 4000 + number, offering([signed(11)], marks=False)).start(reader)
            await Peer(w.network, 4100, offering([signed(11)])).start(reader)
            marks = await fingerprints_of_others(reader, signed(10).statement)
            assert [mark.data.strip() for mark in marks] == [b"right"]

    run(body())


def test_manifests_are_asked_for_a_few_at_a_time_and_fingerprints_by_their_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest and a file may have 16 MiB each, and one peer can offer as many as it likes."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node(trust=False)
            count: list[int] = []
            caps: list[int] = []
            assert reader.network.sessions is not None
            exchange = reader.network.sessions._exchange

            async def noted(address: Any, request: messages.Request, most: int) -> Any:
                if isinstance(request, messages.GetChunk):
                    caps.append(most)
                return await exchange(address, request, most)

            monkeypatch.setattr(reader.network.sessions, "_exchange", noted)
            many = [signed(20 + number, b"%d" % number) for number in range(16)]
            await Peer(w.network, 4000, offering(many, count=count)).start(reader)
            marks = await fingerprints_of_others(reader, signed(10).statement)
            assert len(marks) == 8 and len(count) == 16 and max(count) <= 2
            assert len(caps) == 8 and max(caps) < 100_000

    run(body())


def test_another_ones_envelope_is_no_manifest_of_what_was_offered(tmp_path: Path) -> None:
    """Its giver is asked no more, and who has the right one is."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node(trust=False)
            right, other = signed(11), signed(12, b"other")

            async def lying(request: messages.Request) -> Any:
                if isinstance(request, messages.GetManifest):
                    return other.statement.envelope
                return await offering([right], marks=False)(request)

            sends_invalid_data = await Peer(w.network, 4000, lying).start(reader)
            await Peer(w.network, 4100, offering([right])).start(reader)
            marks = await fingerprints_of_others(reader, signed(10).statement)
            assert [mark.publisher for mark in marks] == [str(key(11).peer_id)]
            assert sum(isinstance(request, messages.GetManifest) for request in sends_invalid_data.heard) <= 1

    run(body())


def test_fingerprints_that_hold_nothing_are_not_said_to_agree(tmp_path: Path) -> None:
    """Where all layers slide, a fingerprint has nothing of a window that has moved on: V6 cannot be done."""

    async def body() -> None:
        async with world(tmp_path) as w:
            reader = await w.node()
            own, other = (make_artifact(key(each), tokens=40, specs=(SLIDING, SLIDING)) for each in (1, 2))
            empty = bytes(64)
            noise: Any = None  # nothing is compared, so none is needed
            told = agree(reader, own.statement, empty, [SignedFingerprint(other.statement, empty)], noise, 0.0)
            assert told.result.verdict == "skipped" and "all layers slide" in told.result.why

    run(body())
