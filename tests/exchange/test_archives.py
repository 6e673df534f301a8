"""Export and import between nodes: what comes out goes in, verified, and nothing else is listed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvswap.artifact.archive import END, archive_length, file_name, header, manifest_name, pack, packed
from kvswap.artifact.layout import needed_files
from kvswap.core.errors import (
    IntegrityError,
    KvswapError,
    MalformedArchive,
    MalformedManifest,
    NotAMember,
    NotFound,
    StoreFull,
    Untrusted,
)
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange import Node
from kvswap.exchange.discovery.resolve import resolve
from kvswap.exchange.export_archive import archive_pieces, prepare_export
from kvswap.exchange.fetch import fetch
from kvswap.exchange.import_archive import import_archive
from kvswap.exchange.withdraw import withdraw
from kvswap.store import Outcome
from kvswap.trust.levels import RULES
from tests.exchange.test_fetch import DOCUMENT, world
from tests.support import Ingested, group, key, make_artifact, run, seal_for


async def exported(node: Node, reference: str | Cid) -> bytes:
    export = await prepare_export(node, reference)
    data = b"".join([piece async for piece in archive_pieces(node, export)])
    assert len(data) == export.length
    return data


async def pieces_of(data: bytes, size: int = 700) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def archive_of(made: Ingested, files: dict[Cid, bytes] | None = None, name: Cid | None = None) -> bytes:
    files = made.chunks if files is None else files
    return b"".join(pack(name or made.statement.artifact, made.statement.envelope, files.items()))


def test_what_is_exported_is_imported_and_used_as_a_fetched_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a, b = await w.node(p2p=False), await w.node(p2p=False)
            made = make_artifact(tokens=100)
            w.give(a, made)
            data = await exported(a, DOCUMENT)
            assert data == archive_of(made, {f.id: made.chunks[f.id] for f in made.manifest.files})
            assert data == await exported(a, made.statement.artifact)
            done = await import_archive(b, pieces_of(data))
            assert (done.artifact, done.document, done.tokens) == (made.id, DOCUMENT, 100)
            assert done.trusted and done.standing == "trusted" and done.group is None
            assert done.bytes == len(data) and done.files == done.new_files == len(made.chunks)
            assert (await resolve(b, DOCUMENT))[0].local
            assert (await fetch(b, DOCUMENT)).wire_bytes == 0
            assert b.store.verify().clean and await exported(b, DOCUMENT) == data
            again = await import_archive(b, pieces_of(data, 1 << 20))
            assert again.new_files == 0
            assert [e["event"] for e in b.events.recent()].count("imported") == 2

    run(body())


def test_of_an_untrusted_publisher_it_is_here_and_not_used(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False)
            made = make_artifact(tokens=40)
            done = await import_archive(node, pieces_of(archive_of(made)))
            assert (done.trusted, done.standing) == (False, "unverified")
            with pytest.raises(Untrusted, match="does not trust"):
                await resolve(node, DOCUMENT)
            node.trust.policy.add(made.manifest.publisher)
            assert (await resolve(node, DOCUMENT))[0].local

    run(body())


def test_a_sealed_one_goes_from_member_to_member(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            team = group()
            a, b, other = await w.node(), await w.node(), await w.node()
            for member in (a, b):
                member.trust.groups.add(team)
            made = seal_for(make_artifact(tokens=40), team)
            w.give(a, made)
            data = await exported(a, DOCUMENT)
            done = await import_archive(b, pieces_of(data))
            assert (done.group, done.document, done.tokens) == ("team", DOCUMENT, 40)
            assert (await fetch(b, DOCUMENT)).wire_bytes == 0
            with pytest.raises(NotAMember):
                await import_archive(other, pieces_of(data))
            assert other.store.count() == 0

    run(body())


def test_a_fetched_one_is_exported_without_what_no_reader_needs(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a, b, c = await w.node(), await w.node(), await w.node()
            made = make_artifact(tokens=100)
            needed = {made.manifest.files[i].id for i in needed_files(made.manifest)}
            assert needed < made.chunks.keys()
            w.give(a, made)
            await fetch(b, DOCUMENT)
            export = await prepare_export(b, DOCUMENT)
            assert export.files.keys() == needed and export.left_out == len(made.chunks) - len(needed)
            done = await import_archive(c, pieces_of(await exported(b, DOCUMENT)))
            assert done.files == len(needed)

    run(body())


def test_what_is_not_whole_or_not_right_is_not_exported(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            with pytest.raises(NotFound, match="not in the store"):
                await prepare_export(node, DOCUMENT)
            made = make_artifact(tokens=100)
            first = made.manifest.files[0].id
            w.give(node, made, only={first})
            with pytest.raises(NotFound, match="not whole"):
                await prepare_export(node, DOCUMENT)
            w.give(node, made)
            last = made.manifest.chunks[-1].id
            node.store._files.path(last).write_bytes(b"damaged")
            with pytest.raises(IntegrityError):
                await prepare_export(node, made.statement.artifact)
            w.give(node, made)
            publisher = made.manifest.publisher
            node.trust.records.put_outcome(Outcome(made.id, publisher, "wrong", RULES))
            with pytest.raises(IntegrityError, match="found wrong"):
                await prepare_export(node, DOCUMENT)
            old = make_artifact(key(3), tokens=40, seed=3, now=int(time.time()) - 1000, lifetime=900, text=b"old")
            w.give(node, old)
            with pytest.raises(Untrusted, match="expired"):
                await prepare_export(node, old.statement.artifact)

    run(body())


def test_an_own_one_that_was_withdrawn_is_not_imported_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            made = make_artifact(key(1000), tokens=40)
            w.give(node, made)
            data = await exported(node, DOCUMENT)
            await withdraw(node, DOCUMENT, "a slip")
            with pytest.raises(KvswapError):
                await prepare_export(node, DOCUMENT)
            with pytest.raises(Untrusted, match="withdrawn"):
                await import_archive(node, pieces_of(data))

    run(body())


# -- what is refused ---------------------------------------------------------------------------------

MADE = make_artifact(tokens=100)
OTHER = make_artifact(key(5), tokens=40, seed=5, text=b"another document")
ENVELOPE = MADE.statement.envelope


def changed(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def with_one_changed() -> bytes:
    cid = MADE.manifest.files[3].id
    return archive_of(MADE, {**MADE.chunks, cid: changed(MADE.chunks[cid])})


HOSTILE: dict[str, tuple[bytes, type[KvswapError], str]] = {
    "a changed chunk": (with_one_changed(), IntegrityError, "are bafkr4"),
    "a changed signature": (
        b"".join([*packed(manifest_name(MADE.statement.artifact), changed(ENVELOPE)), END]),
        IntegrityError,
        "signature",
    ),
    "a manifest of another name": (archive_of(MADE, name=OTHER.statement.artifact), IntegrityError, "calls its"),
    "no manifest inside": (
        b"".join([*packed(manifest_name(MADE.statement.artifact), b"text"), END]),
        MalformedManifest,
        "",
    ),
    "a chunk of another artifact": (
        archive_of(MADE, {**MADE.chunks, **OTHER.chunks}),
        MalformedArchive,
        "no file of this artifact",
    ),
    "chunks that are missing": (archive_of(MADE, dict(list(MADE.chunks.items())[:-3])), MalformedArchive, "not in the"),
    "no chunks": (archive_of(MADE, {}), MalformedArchive, "not in the"),
    "cut off": (archive_of(MADE)[:-4000], MalformedArchive, "cut off"),
    "a chunk that is longer": (
        b"".join(
            [*packed(manifest_name(MADE.statement.artifact), ENVELOPE), header(file_name(MADE.manifest.files[0].id), 9)]
        ),
        MalformedArchive,
        "its manifest says",
    ),
    "nothing": (b"", MalformedArchive, "empty"),
    "expired": (
        archive_of(make_artifact(tokens=40, now=int(time.time()) - 1000, lifetime=900)),
        Untrusted,
        "expired",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_listed_or_lost(name: str, tmp_path: Path) -> None:
    data, kind, why = HOSTILE[name]

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False)
            kept = make_artifact(key(9), tokens=40, seed=9, text=b"it stays")
            w.give(node, kept)
            with pytest.raises(kind) as raised:
                await import_archive(node, pieces_of(data))
            assert why in raised.value.message, raised.value.message
            assert [row.id for row in node.store.artifacts()] == [kept.id]
            assert node.store.get_artifact(kept.id).complete  # type: ignore[union-attr]
            node.store.collect()  # what was right of it goes when room is made
            assert node.store.missing(kept.chunks) == [] and node.store.verify().clean
            if kind is not Untrusted:
                assert (await import_archive(node, pieces_of(archive_of(MADE)))).artifact == MADE.id

    run(body())


def test_a_banned_publisher_is_refused_before_a_chunk_is_kept(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False)
            node.trust.policy.ban(MADE.manifest.publisher, "it lied", MADE.id, "")
            with pytest.raises(Untrusted):
                await import_archive(node, pieces_of(archive_of(MADE)))
            assert node.store.used_bytes == 0

    run(body())


def test_without_room_it_is_told_and_nothing_that_is_pinned_goes(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            kept = make_artifact(key(9), tokens=40, seed=9, text=b"it stays")
            headroom = sum(map(len, kept.chunks.values())) + 500
            node = await w.node(quota=headroom)
            w.give(node, kept)
            node.store.pin(kept.id, True)
            with pytest.raises(StoreFull):
                await import_archive(node, pieces_of(archive_of(MADE)))
            assert [row.id for row in node.store.artifacts()] == [kept.id]

    run(body())


def test_a_sender_that_stops_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stopping() -> AsyncIterator[bytes]:
        yield archive_of(MADE)[:2000]
        await asyncio.sleep(3600)

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            monkeypatch.setattr(type(LIMITS), "chunk_seconds", 0.2, raising=False)
            with pytest.raises(MalformedArchive, match="nothing came"):
                await import_archive(node, stopping())

    run(body())


def test_files_are_not_collected_while_an_import_waits(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            node, data = await w.node(), archive_of(MADE)
            half, go_on = asyncio.Event(), asyncio.Event()

            async def slowly() -> AsyncIterator[bytes]:
                yield data[: len(data) // 2]
                half.set()
                await go_on.wait()
                yield data[len(data) // 2 :]

            work = asyncio.create_task(import_archive(node, slowly()))
            await half.wait()
            assert await asyncio.to_thread(node.store.collect) == 0
            assert node.store.count() == 0  # nothing is listed yet
            go_on.set()
            assert (await work).artifact == MADE.id

    run(body())


def test_an_archive_has_the_length_that_is_promised() -> None:
    sizes = [len(ENVELOPE), *(len(d) for d in MADE.chunks.values())]
    assert archive_length(sizes) == len(archive_of(MADE))
