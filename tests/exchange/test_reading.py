"""Large manifests are read beside the loop, and in pieces, so that it goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.artifact import manifest as manifest_
from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.manifest import Manifest
from kvswap.core import wire
from kvswap.core.limits import LIMITS
from kvswap.exchange.discovery.resolve import judge_envelope
from kvswap.exchange.publishing.ingest import Ingested, ingest
from kvswap.exchange.request import silent
from kvswap.trust import verify as verifying
from kvswap.worker.conversation import ChunkEvent
from tests.exchange.test_fetch import world
from tests.support import FULL, make_artifact, run


def test_a_large_manifest_is_judged_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes along with an answer is judged at once; it has 64 KiB at most."""
    large = make_artifact(tokens=700, block_tokens=1, specs=(FULL,))
    small = make_artifact(tokens=9)
    assert len(small.statement.envelope) < LIMITS.inline_envelope_bytes < len(large.statement.envelope)
    threads: list[int] = []
    real = verifying.parse_manifest

    def parse(*given: Any) -> Any:
        threads.append(threading.get_ident())
        return real(*given)

    monkeypatch.setattr(verifying, "parse_manifest", parse)

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            threads.clear()
            for made, beside in ((small, False), (large, True)):
                assert (await judge_envelope(node, made.statement.envelope, None)).manifest == made.manifest
                assert (threads.pop() != threading.get_ident()) is beside

    run(body())


def test_chunks_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_artifact(tokens=700, block_tokens=1, specs=(FULL, FULL)).manifest
    sizes: list[int] = []
    real = wire.decode

    def decode(data: Any, kind: Any, *more: Any, **others: Any) -> Any:
        out = real(data, kind, *more, **others)
        sizes.append(len(out) if isinstance(out, list) else 1)
        return out

    monkeypatch.setattr(wire, "decode", decode)
    assert parse_manifest(made.encode()) == made
    assert max(s for s in sizes if s != len(made.prefix.chain)) <= manifest_._TOGETHER


def test_a_manifest_is_encoded_a_few_chunks_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_artifact(tokens=700, block_tokens=1, specs=(FULL, FULL)).manifest
    fields = {name: value for name, value in wire.plain(made).items() if value is not None or name == "document"}
    fields |= {name: wire.plain(value) for name, value in made._versioned.items()}
    sizes: list[int] = []
    real = wire.plain

    def plain(value: Any) -> Any:
        sizes.append(len(value) if isinstance(value, list) else len(getattr(value, "chunks", ())))
        return real(value)

    monkeypatch.setattr(wire, "plain", plain)
    assert made.encode() == wire.pack(fields)
    assert len(made.chunks) > manifest_._TOGETHER and max(sizes) <= manifest_._TOGETHER


def test_what_is_signed_is_encoded_and_read_beside_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    real = Manifest.encode
    monkeypatch.setattr(Manifest, "encode", lambda self: (threads.append(threading.get_ident()), real(self))[1])

    artifact = make_artifact(tokens=9)
    threads.clear()

    async def computed(on_event: Any) -> dict[str, Any]:
        for ref in artifact.manifest.chunks:
            await on_event(ChunkEvent(ref=ref, data=artifact.chunks[ref.id], us=1))
        return {}

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()

            async def describe(made: Ingested) -> Manifest:
                publisher = node.identity.own
                return msgspec.structs.replace(artifact.manifest, chunks=made.refs, publisher=publisher)

            statement = await ingest(node, computed, silent, describe, None)
            assert statement.manifest.chunks == artifact.manifest.chunks
            assert threads and threading.get_ident() not in threads

    run(body())
