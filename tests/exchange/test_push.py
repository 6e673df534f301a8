"""Pushing to an origin and fetching from it: nodes that never meet, a directory between them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvswap.api import FindRequest
from kvswap.artifact.archive import file_name, manifest_name
from kvswap.artifact.layout import needed_files
from kvswap.core.errors import IntegrityError, KvswapError, NotFound, OriginError, OriginRefused, Untrusted, UsageError
from kvswap.core.ids import Cid
from kvswap.core.origin_settings import OriginSettings
from kvswap.exchange import Node
from kvswap.exchange.fetch import fetch
from kvswap.exchange.find import find
from kvswap.exchange.prefix import fetch_prefix, find_prefix
from kvswap.exchange.publish import publish
from kvswap.exchange.push import push
from kvswap.exchange.request import Terms
from kvswap.exchange.withdraw import withdraw
from kvswap.origins.files import FileBackend
from kvswap.trust.status_record import read_status_record
from tests.exchange.modelled import RealModel
from tests.exchange.test_fetch import DOCUMENT, needed_bytes, world
from tests.support import DOCUMENT as TEXT_FILE
from tests.support import group, key, make_artifact, run, seal_for


def origin(directory: Path, **more: Any) -> OriginSettings:
    directory.mkdir(exist_ok=True)
    return OriginSettings(f"file://{directory}", **more)


def kinds(node: Node) -> list[str]:
    return [event["event"] for event in node.events.recent()]


def test_a_node_that_never_met_a_peer_fetches_what_another_pushed(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            a, b = await w.node(apart=True), await w.node(apart=True, origins=(share,))
            made = make_artifact(tokens=100)
            w.give(a, made)
            pushed = await push(a, DOCUMENT, share)
            assert pushed.artifact == made.id and pushed.uploaded == len(made.chunks) and not pushed.plain
            done = await fetch(b, DOCUMENT)
            assert (str(done.statement.artifact), done.wire_bytes) == (made.id, needed_bytes(made))
            assert done.peers == (share.url,) and b.store.verify().clean
            record = b.ledger.record(share.url)
            assert record.bytes_in == needed_bytes(made) and record.in_a_row == 0
            assert (await fetch(b, Cid.parse(made.id))).wire_bytes == 0

    run(body())


def test_a_push_leaves_out_what_is_there_and_replaces_what_is_damaged(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            a = await w.node(apart=True)
            made = make_artifact(tokens=100)
            w.give(a, made)
            await push(a, DOCUMENT, share)
            assert (await push(a, DOCUMENT, share)).uploaded == 0
            cids = list(made.chunks)
            (tmp_path / "share" / file_name(cids[0])).unlink()
            damaged = tmp_path / "share" / file_name(cids[1])
            damaged.write_bytes(bytes(damaged.stat().st_size))
            again = await push(a, DOCUMENT, share)
            assert again.uploaded == 2 and again.uploaded_bytes == sum(len(made.chunks[c]) for c in cids[:2])

    run(body())


def test_a_push_that_broke_off_shows_no_reader_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            a, b = await w.node(apart=True), await w.node(apart=True, origins=(share,))
            made = make_artifact(tokens=100)
            w.give(a, made)
            original, writes = FileBackend._put, 0

            def failing(self: FileBackend, name: str, data: bytes, tag: str | None) -> None:
                nonlocal writes
                writes += 1
                if writes > breaks:
                    raise OSError(5, "the cable was pulled")
                original(self, name, data, tag)

            monkeypatch.setattr(FileBackend, "_put", failing)
            total = len(made.chunks) + 1 + 3 + 3  # the manifest, a trial of conditions, layers and two pages
            for breaks in (
                0,
                1,
                len(made.chunks) // 2,
                *range(total - 8, total - 1),
            ):  # but the last: it is listed then
                writes = 0
                with pytest.raises(OriginError, match="cable"):
                    await push(a, DOCUMENT, share)
                with pytest.raises(NotFound):
                    await fetch(b, DOCUMENT)
                for name in (tmp_path / "share").rglob("*"):
                    if name.is_file():
                        name.unlink()
            writes, breaks = 0, total
            await push(a, DOCUMENT, share)
            assert writes == total
            assert (await fetch(b, DOCUMENT)).peers == (share.url,)

    run(body())


def test_a_wrong_or_missing_chunk_is_had_from_a_peer_and_the_origin_marked(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            a = await w.node()
            b, c = await w.node(origins=(share,)), await w.node(origins=(share,))
            made = make_artifact(tokens=100)
            w.give(a, made)
            await push(a, DOCUMENT, share)
            wanted = [made.manifest.files[i].id for i in needed_files(made.manifest)]
            (tmp_path / "share" / file_name(wanted[0])).unlink()
            await fetch(b, DOCUMENT)
            assert b.store.verify().clean and not b.ledger.record(share.url).lies
            for cid in wanted:
                path = tmp_path / "share" / file_name(cid)
                path.write_bytes(bytes(len(made.chunks[cid])))
            b.store.remove(made.id)
            await b.transport.disconnect(c.transport.peer)
            await c.transport.disconnect(b.transport.peer)
            done = await fetch(c, DOCUMENT)
            assert done.peers == (a.transport.peer,) and c.store.verify().clean
            if c.ledger.record(share.url).lies:  # it was asked for one
                assert c.peers.backoff_seconds(share.url) > 3000 and "peer_lied" in kinds(c)

    run(body())


def test_an_origin_that_lies_alone_is_told_by_its_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            a, b = await w.node(apart=True), await w.node(apart=True, origins=(share,))
            made = make_artifact(tokens=100)
            w.give(a, made)
            await push(a, DOCUMENT, share)
            for cid, data in made.chunks.items():
                (tmp_path / "share" / file_name(cid)).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            with pytest.raises(IntegrityError, match=share.url):
                await fetch(b, DOCUMENT)
            assert b.ledger.record(share.url).lies == 1
            assert b.store.missing(list(made.chunks)) == list(made.chunks)

    run(body())


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", bytes(100), b"\x94\x01\x90\x90\x90"])
def test_what_is_no_manifest_and_no_page_is_no_answer(tmp_path: Path, content: bytes) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            a, b = await w.node(apart=True), await w.node(apart=True, origins=(share,))
            made = make_artifact(tokens=100)
            w.give(a, made)
            await push(a, DOCUMENT, share)
            (tmp_path / "share" / manifest_name(made.statement.artifact)).write_bytes(content)
            with pytest.raises(KvswapError) as raised:
                await fetch(b, DOCUMENT)
            assert raised.value.exit_code in (5, 6, 7, 9) and b.store.count() == 0
            for page in (tmp_path / "share" / "index").rglob("*.page"):
                page.write_bytes(content)
            with pytest.raises(KvswapError):
                await fetch(b, DOCUMENT)

    run(body())


def test_only_what_is_trusted_is_taken_from_an_origin(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            a = await w.node(apart=True)
            b = await w.node(apart=True, trust=False, origins=(share,))
            made = make_artifact(tokens=100)
            w.give(a, made)
            await push(a, DOCUMENT, share)
            with pytest.raises(Untrusted):
                await fetch(b, DOCUMENT)
            found = await find(b, DOCUMENT, FindRequest(ref=DOCUMENT))
            assert [h.peer for h in found.artifacts[0].holders] == [share.url] and not found.artifacts[0].trusted

    run(body())


def test_a_sealed_one_is_found_by_members_alone(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            team = group()
            a, b = await w.node(apart=True), await w.node(apart=True, origins=(share,))
            c = await w.node(apart=True, origins=(share,))
            for member in (a, b):
                member.trust.groups.add(team)
            made = seal_for(make_artifact(tokens=40), team)
            w.give(a, made)
            await push(a, DOCUMENT, share)
            assert (await fetch(b, DOCUMENT)).peers == (share.url,)
            with pytest.raises(NotFound):
                await fetch(c, DOCUMENT)

    run(body())


def test_a_directory_that_is_not_there_or_refuses_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            a = await w.node(apart=True)
            w.give(a, make_artifact(tokens=100))
            with pytest.raises(OriginError, match="is not there"):
                await push(a, DOCUMENT, OriginSettings(f"file://{tmp_path}/unmounted"))
            with pytest.raises(UsageError, match="no origin"):
                await push(a, DOCUMENT)
            with pytest.raises(OriginRefused, match="read only"):
                await push(a, DOCUMENT, OriginSettings("https://127.0.0.1:1/x"))
            share = origin(tmp_path / "share", write=True)
            b = await w.node(apart=True, origins=(share,))
            w.give(b, make_artifact(tokens=100))
            assert (await push(b, DOCUMENT)).url == share.url

    run(body())


def test_two_push_at_once_and_both_are_found(tmp_path: Path) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            nodes = [await w.node(apart=True) for _ in range(3)]
            made = [make_artifact(key(number), tokens=100) for number in (1, 2, 3)]
            for node, one in zip(nodes, made, strict=True):
                w.give(node, one)
            await asyncio.gather(*(push(node, DOCUMENT, share) for node in nodes))
            reader = await w.node(apart=True, origins=(share,))
            found = await find(reader, DOCUMENT, FindRequest(ref=DOCUMENT))
            assert {a.artifact for a in found.artifacts} == {one.id for one in made}

    run(body())


TEXT = TEXT_FILE.read_text()[:700]
OTHER = TEXT[:500] + " And something else entirely, which nobody has published yet."


def test_by_its_beginning_a_text_is_continued_from_an_origin(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    """Published on one node, pushed to a directory, found by another text's beginning on a node that met nobody."""

    async def body() -> None:
        async with world(tmp_path) as w:
            share = origin(tmp_path / "share")
            models = [RealModel(tiny_models["llama"]) for _ in range(2)]
            a = await w.node(model=models[0], apart=True, block_tokens=64)
            b = await w.node(model=models[1], apart=True, block_tokens=64, origins=(share,))
            b.trust.policy.add(a.identity.own)
            made = await publish(a, TEXT.encode())
            choice = await b.model.choose()
            assert (await find_prefix(b, choice, OTHER))[1] is None
            await push(a, Cid.parse(made["artifact"]), share)
            tokens, found = await find_prefix(b, choice, OTHER)
            assert found is not None and found.peers == (share.url,) and 64 <= found.tokens < tokens
            await fetch_prefix(b, found, Terms(force=True))
            assert not b.store.missing(found.files) and b.store.verify().clean
            _, again = await find_prefix(b, choice, OTHER)
            assert again is not None and again.tokens == found.tokens
            searched = await find(b, "sha256:" + "0" * 64, FindRequest(ref="x", text=OTHER))
            assert searched.prefix is not None and searched.prefix.here

    run(body())


def test_what_is_withdrawn_is_taken_from_where_it_was_pushed(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with world(tmp_path) as w:
            first, second = origin(tmp_path / "first"), origin(tmp_path / "second")
            a = await w.node(model=RealModel(tiny_models["llama"]), apart=True, block_tokens=64)
            made = await publish(a, TEXT.encode())
            other = await publish(a, TEXT[:300].encode())
            for reference in (made["artifact"], other["artifact"]):
                await push(a, Cid.parse(reference), first)
            await push(a, Cid.parse(made["artifact"]), second)
            status = read_status_record(next((tmp_path / "first" / "status").iterdir()).read_bytes()).record
            assert status.publisher == a.identity.own and status.artifacts == 2
            (tmp_path / "second").rename(tmp_path / "unmounted")
            done = await withdraw(a, Cid.parse(made["artifact"]), "an error on page 3")
            assert done.origins == [first.url] and list(done.still_at) == [second.url]
            status = read_status_record(next((tmp_path / "first" / "status").iterdir()).read_bytes()).record
            assert status.reasons == {made["artifact"]: "an error on page 3"}
            reader = await w.node(model=RealModel(tiny_models["llama"]), apart=True, origins=(first,), block_tokens=64)
            reader.trust.policy.add(a.identity.own)
            with pytest.raises(NotFound):
                await fetch(reader, made["document"])
            with pytest.raises(NotFound):
                await fetch(reader, Cid.parse(made["artifact"]))
            await fetch(reader, other["document"], Terms(force=True))
            # What came with the answer is obeyed: who still has it elsewhere does not use it any more.
            assert reader.trust.records.withdrawn(made["artifact"], a.identity.own) == "an error on page 3"
            (tmp_path / "unmounted").rename(tmp_path / "second")
            late = await w.node(model=RealModel(tiny_models["llama"]), apart=True, origins=(second,), block_tokens=64)
            late.trust.policy.add(a.identity.own)
            await push(a, Cid.parse(other["artifact"]), second)
            with pytest.raises(Untrusted, match="withdrawn"):
                await fetch(late, made["document"])

    run(body())
