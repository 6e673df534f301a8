"""Publishing, with the model process's own jobs in a thread: what is made, kept, signed, made again, and superseded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from kvswap.api.requests import PublishOptions
from kvswap.artifact.layout import block_count
from kvswap.core.errors import InvalidDocument, NotAMember, NotFound, UsageError
from kvswap.core.ids import Cid, document_digest
from kvswap.exchange import Node
from kvswap.exchange.fetch import fetch
from kvswap.exchange.model_port import ModelPort
from kvswap.exchange.publish import publish
from kvswap.exchange.request import Terms
from kvswap.exchange.withdraw import withdraw
from kvswap.trust import Statement, read_statement
from kvswap.trust.groups import no_keys
from tests.exchange.modelled import jobs_of, publisher_and_reader
from tests.support import DOCUMENT, run

TEXT = DOCUMENT.read_text()[:700].encode()


def stored(node: Node, artifact: str) -> Statement:
    """What a node has of an artifact, its signature checked."""
    envelope = node.store.envelope(artifact)
    assert envelope is not None
    return read_statement(envelope, node.trust.groups.keys)


def test_what_is_published_is_whole_signed_and_what_a_reader_gets(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            events: list[dict[str, Any]] = []

            async def progress(event: dict[str, Any]) -> None:
                events.append(event)

            made = await publish(a, TEXT, PublishOptions(source="manual"), progress)
            manifest = stored(a, made["artifact"]).manifest
            blocks = block_count(made["tokens"], 64)
            assert made["document"] == document_digest(TEXT) and not made["reused"] and made["exact"]
            assert manifest.publisher == str(a.identity.publisher.peer_id) and manifest.document.source == "manual"  # type: ignore[union-attr]
            assert [e["block"] for e in events if e["event"] == "prefill"] == list(range(1, blocks + 1))
            assert made["wire_bytes"] == sum(c.length for c in manifest.chunks) < made["raw_bytes"]
            assert a.store.missing([f.id for f in manifest.files]) == [] and a.store.verify().clean
            done = await fetch(b, document_digest(TEXT), Terms(force=True))
            assert str(done.statement.artifact) == made["artifact"] and b.store.verify().clean

    run(body())


def test_a_document_is_prefilled_once_and_another_codec_made_of_what_is_there(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, _b):
            first = await publish(a, TEXT)
            again = await publish(a, TEXT)
            assert again["reused"] and again["artifact"] == first["artifact"] and jobs_of(a)["publish"] == 1
            raw = await publish(a, TEXT, PublishOptions(codec="raw"))
            lossy = await publish(a, TEXT, PublishOptions(codec="int8"))
            assert raw["codec"] == "raw" and raw["wire_bytes"] == raw["raw_bytes"] and raw["exact"]
            assert lossy["codec"] == "int8" and not lossy["exact"] and lossy["divergence"]["steps"] == 32
            assert jobs_of(a)["publish"] == 1 and jobs_of(a)["recode"] == 2
            every = [first["artifact"], raw["artifact"], lossy["artifact"]]
            lossless, same, other = (stored(a, artifact).manifest.tensors for artifact in every)
            assert lossless == same != other

    run(body())


def test_an_inexact_codec_alone_makes_the_exact_one_first(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, _b):
            lossy = await publish(a, TEXT, PublishOptions(codec="int8"))
            assert jobs_of(a)["publish"] == jobs_of(a)["recode"] == 1
            kept = {row.id for row in a.store.artifacts()}
            assert lossy["artifact"] in kept and len(kept) == 2

    run(body())


@pytest.mark.parametrize("change", ["model", "blocks", "group", "withdrawn", "removed chunk"])
def test_only_what_is_the_same_alive_and_whole_is_used_again(
    tmp_path: Path, tiny_models: dict[str, Path], change: str
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (w, a, _b):
            first = await publish(a, TEXT)
            node, group = a, None
            if change == "model":
                object.__setattr__(a.model._choice, "dtype", "bfloat16")  # type: ignore[attr-defined]
            elif change == "blocks":
                object.__setattr__(a.settings, "block_tokens", 32)
            elif change == "group":
                group = a.trust.groups.new("team").name
            elif change == "withdrawn":
                await withdraw(a, Cid.parse(first["artifact"]), "a typing error")
            else:
                a.store.remove(first["artifact"])
            second = await publish(node, TEXT, PublishOptions(group=group))
            assert not second["reused"] and jobs_of(a)["publish"] == 2

    run(body())


def test_for_a_group_nothing_that_is_kept_can_be_read_by_others(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, b):
            team = a.trust.groups.new("team")
            made = await publish(a, TEXT, PublishOptions(group="team"))
            assert made["group"] == "team"
            assert (await publish(a, TEXT, PublishOptions(group="team")))["reused"]
            with pytest.raises(NotFound):
                await publish(a, TEXT, PublishOptions(group="others"))
            manifest = stored(a, made["artifact"]).manifest
            kept = b"".join(a.store.get_chunk(f.id) for f in manifest.files) + a.store.envelope(made["artifact"])  # type: ignore[operator]
            for secret in (manifest.document.sha256, manifest.prefix.token_digest, *manifest.prefix.chain):  # type: ignore[union-attr]
                assert secret not in kept
            with pytest.raises(NotFound):
                await fetch(b, document_digest(TEXT), Terms(force=True))
            b.trust.groups.add(team)
            done = await fetch(b, document_digest(TEXT), Terms(force=True))
            assert str(done.statement.artifact) == made["artifact"]
            with pytest.raises(NotAMember):
                read_statement(a.store.envelope(made["artifact"]), no_keys)  # type: ignore[arg-type]

    run(body())


def test_what_stood_at_a_source_is_superseded_by_what_stands_there_now(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, _b):
            elsewhere = await publish(a, TEXT[:300], PublishOptions(source="another"))
            old = await publish(a, TEXT, PublishOptions(source="manual"))
            new = await publish(a, TEXT[:600], PublishOptions(source="manual"))
            assert stored(a, new["artifact"]).manifest.life.supersedes == bytes(Cid.parse(old["artifact"]))
            assert {row.id for row in a.store.artifacts()} == {elsewhere["artifact"], new["artifact"]}
            told = a.trust.records.withdrawn_by(str(a.identity.publisher.peer_id))
            assert list(told) == [old["artifact"]] and "has changed" in told[old["artifact"]]

    run(body())


@pytest.mark.parametrize(
    "given",
    [
        {"data": b""},
        {"data": b" \n"},
        {"data": b"\xff"},
        {"codec": "nonsense"},
        {"codec": "predictive"},  # no predictor was trained
        {"source": "\ud800"},
        {"media_type": "\ud800"},
    ],
    ids=repr,
)
def test_what_cannot_be_published_is_told_before_anything_is_computed(
    tmp_path: Path, tiny_models: dict[str, Path], given: dict[str, Any]
) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, _b):
            with pytest.raises((InvalidDocument, UsageError)):
                await publish(
                    a, given.get("data", TEXT), PublishOptions(**{k: v for k, v in given.items() if k != "data"})
                )
            assert not jobs_of(a) and a.store.artifacts() == []

    run(body())


def test_a_publication_that_is_given_up_lists_nothing(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"]) as (_, a, _b):
            begun = asyncio.Event()

            async def progress(event: dict[str, Any]) -> None:
                begun.set()

            publishing = asyncio.create_task(publish(a, TEXT, progress=progress))
            await begun.wait()
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
            assert a.store.artifacts() == []
            made = await publish(a, TEXT)
            assert not made["reused"] and a.store.verify().clean

    run(body())


def test_the_second_codec_is_made_beside_where_it_can_be(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, tiny_models["llama"], also_codec="raw") as (_, a, _b):
            port: ModelPort = a.model
            assert port is a.model
            first = await publish(a, TEXT)
            while len(a.store.artifacts()) < 2:
                await asyncio.sleep(0.005)
            other = next(row.id for row in a.store.artifacts() if row.id != first["artifact"])
            assert stored(a, other).manifest.codecs == ["raw"]
            assert (await publish(a, TEXT))["artifact"] == first["artifact"]
            assert (await publish(a, TEXT, PublishOptions(codec="raw")))["artifact"] == other

    run(body())
