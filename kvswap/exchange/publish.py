"""Publishing: text -> model process -> chunks into the store -> signed manifest -> announcement.

A document that this node holds already, in another codec, is not prefilled again but transcoded; a
lossy codec always is, so that its answers can be compared with the exact ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import time

import msgspec

from kvswap.api.caches import DivergenceFigures, PublishResult
from kvswap.api.requests import PublishOptions
from kvswap.artifact.checkpoints import state_bytes
from kvswap.artifact.layout import resumes_at
from kvswap.artifact.manifest import (
    LOSSY_CODECS,
    DocumentRef,
    Life,
    Manifest,
    version_of,
)
from kvswap.artifact.sealing import FINGERPRINT, open_file
from kvswap.core import wire
from kvswap.core.documents import check_document, check_written
from kvswap.core.errors import KvswapError, UsageError
from kvswap.core.ids import Cid, document_digest
from kvswap.core.settings import CODECS
from kvswap.core.text import printable
from kvswap.exchange.model_port import ModelChoice, OnEvent
from kvswap.exchange.node.node import Node
from kvswap.exchange.node.predictors import own as own_predictor
from kvswap.exchange.node.predictors import path as predictor_path
from kvswap.exchange.publishing.ingest import Ingested, ingest
from kvswap.exchange.publishing.own_prefix import own_prefix
from kvswap.exchange.publishing.signing import new_life, reusable
from kvswap.exchange.publishing.withdrawal import superseded, withdraw_rows
from kvswap.exchange.request import Progress, silent
from kvswap.trust import Group, Identifiers, Statement
from kvswap.trust.groups import PUBLIC
from kvswap.worker.messages import PublishedCache, PublishJob, TranscodedCache, TranscodeJob

_USUAL = PublishOptions()


async def publish(
    node: Node,
    data: bytes,
    options: PublishOptions = _USUAL,
    progress: Progress = silent,
) -> PublishResult:
    """Publish a document.

    An artifact that this node already published for the same document, model, codec and readers is reused, unless it
    lacks a checkpoint that is asked for.
    """
    began = time.perf_counter()
    text = check_document(data)
    codec = options.codec or node.settings.codec
    if codec not in CODECS:  # else told as of a newer kvswap, after the prefill
        raise UsageError(
            f"unknown codec {printable(codec)!r}", cause="a typing error", hint=f"--codec {', '.join(CODECS)}"
        )
    media_type, source = options.media_type or "text/plain", options.source
    check_written(media_type, "the media type")
    check_written(source or "", "the source")
    name = options.group or node.settings.group
    readers = node.trust.groups.get(name) if name else None
    choice = await node.model.choose(options.model)
    document = DocumentRef(sha256=hashlib.sha256(data).digest(), length=len(data), media_type=media_type, source=source)
    own = await asyncio.to_thread(_own, node, document_digest(data), choice, readers or PUBLIC)
    own = [s for s in own if resumes_at(s.manifest, options.checkpoints)]
    alike = next((s for s in own if _made_with(s.manifest, codec)), None)
    lossless = await asyncio.to_thread(_lossless, node, own)
    other = await asyncio.to_thread(_other_codec, node, choice, codec, own)
    if alike is not None:
        if other and lossless:
            node.background.spawn(_publish_secondary(node, choice, lossless, other))
        return _result(alike, time.perf_counter() - began, reused=True)
    old = await asyncio.to_thread(superseded, node, source, document.reference) if source else []
    ingested, reused_tokens = None, 0
    if lossless is None:
        ingested = "planes" if codec in LOSSY_CODECS else codec
        life = new_life(node, old[0].artifact if old else None)
        job = PublishJob(
            text=text,
            block_tokens=node.settings.block_tokens,
            codec=ingested,
            truncate=options.truncate,
            checkpoints=list(options.checkpoints),
        )
        lossless, reused_tokens = await _prefilled(node, choice, job, document, life, readers, progress)
    for statement in old:  # what stood at the source before is not what stands there now
        row = await asyncio.to_thread(node.store.get_artifact, str(statement.artifact))
        what = source if statement.seal is None else "its source"  # everybody is told why
        if row is not None:
            await withdraw_rows(node, [row], f"{what} has changed: superseded by {lossless.artifact}")
    statement = lossless if ingested == codec else await transcoded(node, choice, lossless, codec, progress)
    if other:
        node.background.spawn(_publish_secondary(node, choice, lossless, other))
    return _result(statement, time.perf_counter() - began, reused=False, reused_tokens=reused_tokens)


def _other_codec(node: Node, choice: ModelChoice, codec: str, own: list[Statement]) -> str | None:
    """Return the codec to publish in beside `codec`; None where there is none, or it is there already."""
    other = node.settings.also_codec
    able = other != "predictive" or predictor_path(node, choice) is not None
    wanted = other not in ("", codec) and other not in LOSSY_CODECS and codec not in LOSSY_CODECS and able
    return other if wanted and not any(_made_with(s.manifest, other) for s in own) else None


async def _publish_secondary(node: Node, choice: ModelChoice, lossless: Statement, codec: str) -> None:
    """Publish the same in the other codec, for readers whom that serves better; unless it is there by now."""
    document = lossless.manifest.document.reference if lossless.manifest.document else ""
    async with node.background.transcoding:
        own = await asyncio.to_thread(_own, node, document, choice, lossless.identifiers)
        if any(_made_with(s.manifest, codec) for s in own):
            return
        try:
            await transcoded(node, choice, lossless, codec, silent)
        except KvswapError as error:
            node.events.add("not_recoded", artifact=str(lossless.artifact), codec=codec, reason=error.message)


async def _prefilled(
    node: Node,
    choice: ModelChoice,
    job: PublishJob,
    document: DocumentRef,
    life: Life,
    readers: Group | None,
    progress: Progress,
) -> tuple[Statement, int]:
    """Prefill and sign a document; return it with the tokens that an own artifact had already."""
    reused = 0

    async def manifest(ingested: Ingested[PublishedCache]) -> Manifest:
        nonlocal reused
        made = ingested.result
        reused = made.reused
        node.learn_prefill(choice, made.samples)
        return Manifest(
            version=version_of(made.layout),
            model=made.model,
            document=document,
            prefix=made.prefix,
            layout=made.layout,
            numerics=made.numerics,
            tensors=made.tensors,
            chunks=ingested.refs,
            probe=made.probe,
            predictor=ingested.predictor,
            fingerprint=ingested.fingerprint,
            life=life,
            publisher=node.identity.own,
        )

    predictor = await _predictor(node, choice, job.codec)
    base = await own_prefix(node, choice, job, readers or PUBLIC)
    job = msgspec.structs.replace(
        job,
        predictor=_cid(predictor),
        chunks=str(node.store.chunks_directory),
        base=base.envelope if base is not None else None,
        base_key=base.key if base is not None else None,
    )

    async def run(on_event: OnEvent) -> PublishedCache:
        return await node.model.run(choice, job, on_event)

    return await ingest(node, run, progress, manifest, readers, predictor=predictor), reused


async def _predictor(node: Node, choice: ModelChoice, codec: str) -> bytes | None:
    """Return the predictor that a codec codes this model's chunks with; None for a codec without one."""
    return await asyncio.to_thread(own_predictor, node, choice) if codec == "predictive" else None


def _cid(predictor: bytes | None) -> str | None:
    return str(Cid.of(predictor)) if predictor is not None else None


async def transcoded(node: Node, choice: ModelChoice, lossless: Statement, codec: str, progress: Progress) -> Statement:
    """Transcode an own exact artifact into another codec and publish it.

    Raises `UsageError` when that needs a predictor and there is none.
    """

    async def manifest(ingested: Ingested[TranscodedCache]) -> Manifest:
        effect, same = (
            ingested.result,
            msgspec.structs.replace(
                lossless.manifest,
                chunks=ingested.refs,
                predictor=ingested.predictor,
                fingerprint=ingested.fingerprint,
                life=new_life(node),
            ),
        )
        if effect.divergence is None:
            return same
        return msgspec.structs.replace(same, divergence=effect.divergence, probe=effect.probe, tensors=effect.tensors)

    readers = lossless.identifiers if isinstance(lossless.identifiers, Group) else None
    predictor = await _predictor(node, choice, codec)
    job = TranscodeJob(
        envelope=lossless.envelope,
        key=lossless.key,
        codec=codec,
        chunks=str(node.store.chunks_directory),
        predictor=_cid(predictor),
    )

    async def run(on_event: OnEvent) -> TranscodedCache:
        return await node.model.run(choice, job, on_event)

    async with node.store.held(lambda: [f.id for f in lossless.manifest.files]):
        file = None if codec in LOSSY_CODECS else lossless.manifest.fingerprint  # which is of the exact cache
        data = await asyncio.to_thread(node.store.get_chunk, file.id) if file is not None else None
        fingerprint = (
            open_file(file, FINGERPRINT, data, lossless.seal) if file is not None and data is not None else None
        )
        return await ingest(node, run, progress, manifest, readers, predictor=predictor, fingerprint=fingerprint)


def _own(node: Node, document: str, choice: ModelChoice, identifiers: Identifiers) -> list[Statement]:
    """List what this node published of a document with this model for the same readers, complete and still valid."""
    out: list[Statement] = []
    wanted = identifiers.model(choice.identity.digest, choice.dtype)
    for row in node.store.artifacts(identifiers.document(document)):
        same = row.complete and (row.model, row.dtype) == wanted
        statement = reusable(node, row) if same else None
        if statement is None or statement.manifest.numerics.claim != "bitwise":  # not what an engine made
            continue
        if statement.manifest.prefix.block_tokens == node.settings.block_tokens:
            out.append(statement)
    return out


def _made_with(manifest: Manifest, codec: str) -> bool:
    """Return True if publishing in `codec` gives this again; a chunk that it does not help is of a plainer one."""
    if manifest.predictor is not None:
        return codec == "predictive"
    codecs = set(manifest.codecs) - {"raw"} or {"raw"}
    return codecs == {codec}


def _lossless(node: Node, own: list[Statement]) -> Statement | None:
    """Return the first of these that is exact and whole in the store."""
    lossless = (statement for statement in own if statement.manifest.lossless)
    return next((s for s in lossless if not node.store.missing([f.id for f in s.manifest.files])), None)


def _result(statement: Statement, seconds: float, *, reused: bool, reused_tokens: int = 0) -> PublishResult:
    manifest, group = statement.manifest, statement.identifiers
    return PublishResult(
        artifact=str(statement.artifact),
        document=manifest.document.reference if manifest.document else None,
        group=group.name if isinstance(group, Group) else None,
        model=manifest.model.label,
        tokens=manifest.prefix.tokens,
        checkpoints=list(manifest.layout.checkpoints),
        state_bytes=state_bytes(manifest.layout.layers, manifest.layout.dtype),
        raw_bytes=manifest.raw_bytes,
        wire_bytes=manifest.wire_bytes,
        codec=manifest.codecs[0],
        lossless=manifest.lossless,
        divergence=DivergenceFigures.from_json(wire.plain(manifest.divergence)) if manifest.divergence else None,
        seconds=round(seconds, 3),
        reused=reused,
        reused_tokens=reused_tokens,
    )
