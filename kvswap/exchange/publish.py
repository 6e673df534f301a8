"""Publishing: text -> model process -> chunks into the store -> signed manifest -> announcement."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from kvswap.artifact import dsse, layout
from kvswap.artifact.manifest import (
    VERSION,
    ChunkRef,
    DocumentRef,
    Layout,
    Life,
    Manifest,
    ModelIdentity,
    Numerics,
    PredictorRef,
    Prefix,
    Probe,
    TensorDigests,
)
from kvswap.core import wire
from kvswap.core.documents import check_document
from kvswap.core.ids import Cid, document_digest
from kvswap.exchange.model_port import ModelChoice
from kvswap.exchange.node import Node
from kvswap.exchange.predictors import own as own_predictor
from kvswap.store import ArtifactRow
from kvswap.trust import Statement, read_statement

Progress = Callable[[dict[str, Any]], Awaitable[None]]
_RENEW_SECONDS = 86_400  # an own artifact with less life than this is made again


async def silent(event: dict[str, Any]) -> None:
    """A progress callback that shows nothing."""


async def publish(
    node: Node,
    data: bytes,
    *,
    model: str | None = None,
    codec: str | None = None,
    truncate: bool = False,
    media_type: str = "text/plain",
    source: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Publish a document and return the JSON contract's fields.

    An artifact that this node already published for the same document, model and codec is reused.
    """
    began = time.perf_counter()
    text = check_document(data)
    codec = codec or node.settings.codec
    choice = await node.model.choose(model)
    predictor = await asyncio.to_thread(own_predictor, node, choice) if codec == "predictive" else None
    reused = await asyncio.to_thread(_own, node, document_digest(data), choice, codec)
    if reused is not None:
        return _result(reused, time.perf_counter() - began, reused=True)

    refs: list[ChunkRef] = []
    cid = Cid.of(predictor) if predictor is not None else None
    with node.store.lease([cid] if cid else []) as hold:
        if predictor is not None:
            await asyncio.to_thread(node.store.put_chunk, predictor, cid)

        async def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "chunk":
                ref = wire.convert(event["ref"], ChunkRef)
                hold(ref.id)
                await asyncio.to_thread(node.store.put_chunk, event["data"], ref.id)
                refs.append(ref)
            else:
                await progress(event)

        made = await node.model.run(
            choice,
            "publish",
            on_event,
            text=text,
            block_tokens=node.settings.block_tokens,
            codec=codec,
            truncate=truncate,
            predictor=str(cid) if cid else None,
            chunks=str(node.store.chunks_directory),
        )
        document = DocumentRef(
            sha256=hashlib.sha256(data).digest(), length=len(data), media_type=media_type, source=source
        )
        named = None  # where prediction helped nowhere, every chunk is of another codec
        if cid and predictor and any(ref.codec == "predictive" for ref in refs):
            named = PredictorRef(cid=bytes(cid), length=len(predictor))
        statement = _sign(node, made, refs, document, named)
        await asyncio.to_thread(list_artifact, node, statement)
    node.learn_prefill(choice, made["samples"])
    node.counters.published += 1
    row = statement.manifest
    node.events.add(
        "published", artifact=str(statement.artifact), document=document.reference, tokens=row.prefix.tokens
    )
    node.spawn(node.announce(str(statement.artifact), document.reference))
    return _result(statement, time.perf_counter() - began, reused=False)


def _sign(
    node: Node, made: dict[str, Any], refs: list[ChunkRef], document: DocumentRef, predictor: PredictorRef | None
) -> Statement:
    now = int(time.time())
    manifest = Manifest(
        version=VERSION,
        model=wire.convert(made["model"], ModelIdentity),
        document=document,
        prefix=wire.convert(made["prefix"], Prefix),
        layout=wire.convert(made["layout"], Layout),
        numerics=wire.convert(made["numerics"], Numerics),
        tensors=wire.convert(made["tensors"], list[TensorDigests]),
        chunks=sorted(refs, key=lambda r: (r.block, r.run)),
        probe=wire.convert(made["probe"], Probe),
        predictor=predictor,
        life=Life(issued=now, expires=now + node.settings.artifact_days * 86_400, sequence=now),
        publisher=str(node.publisher.peer_id),
    )
    envelope = dsse.seal(manifest.encode(), manifest.publisher, node.publisher.sign)
    return read_statement(envelope)  # what we sign must pass the checks that everybody makes


def list_artifact(node: Node, statement: Statement) -> bool:
    """Index an artifact under its document and chain digests; True when what a reader needs is here."""
    manifest = statement.manifest
    now = time.time()
    row = ArtifactRow(
        id=str(statement.artifact),
        document=manifest.document.reference if manifest.document else None,
        model=manifest.model.digest,
        label=manifest.model.label,
        dtype=manifest.layout.dtype,
        tokens=manifest.prefix.tokens,
        raw_bytes=manifest.raw_bytes,
        wire_bytes=manifest.wire_bytes,
        publisher=manifest.publisher,
        expires=manifest.life.expires,
        added=now,
        used=now,
        pinned=False,
        complete=False,
    )
    files = manifest.files
    needed = {files[i].id for i in layout.needed_files(manifest)}
    others = [f.id for f in files if f.id not in needed]
    return node.store.put_artifact(row, statement.envelope, needed, others, manifest.prefix.chain)


def _own(node: Node, document: str, choice: ModelChoice, codec: str) -> Statement | None:
    for row in node.store.artifacts(document):
        same = row.complete and row.dtype == choice.dtype and row.model == choice.identity.digest
        if same and row.publisher == str(node.publisher.peer_id) and row.expires > time.time() + _RENEW_SECONDS:
            envelope = node.store.envelope(row.id)
            statement = read_statement(envelope) if envelope else None
            if statement and _made_alike(statement.manifest, codec, node.settings.block_tokens):
                return statement
    return None


def _made_alike(manifest: Manifest, codec: str, block_tokens: int) -> bool:
    if manifest.predictor is not None:
        return codec == "predictive" and manifest.prefix.block_tokens == block_tokens
    codecs = {c.codec for c in manifest.chunks} - {"raw"} or {"raw"}
    return codecs == {codec} and manifest.prefix.block_tokens == block_tokens


def _result(statement: Statement, seconds: float, *, reused: bool) -> dict[str, Any]:
    manifest = statement.manifest
    return {
        "artifact": str(statement.artifact),
        "document": manifest.document.reference if manifest.document else None,
        "model": manifest.model.label,
        "tokens": manifest.prefix.tokens,
        "raw_bytes": manifest.raw_bytes,
        "wire_bytes": manifest.wire_bytes,
        "seconds": round(seconds, 3),
        "reused": reused,
    }
