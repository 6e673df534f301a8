"""Publishing: text -> model process -> chunks into the store -> signed manifest -> announcement.

A document that this node holds already, in another codec, is not prefilled again but transcoded; a
lossy codec always is, so that its answers can be compared with the exact ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import Any

import msgspec

from kvswap.artifact.manifest import (
    INEXACT,
    Divergence,
    DocumentRef,
    Life,
    Manifest,
    ModelIdentity,
    Numerics,
    Prefix,
    Probe,
    version_of,
)
from kvswap.artifact.sealing import FINGERPRINT, open_file
from kvswap.artifact.specs import Layout, TensorDigests
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
from kvswap.exchange.publishing.ingest import Made, Run, make
from kvswap.exchange.publishing.signing import new_life, reusable
from kvswap.exchange.publishing.withdrawal import superseded, withdraw_rows
from kvswap.exchange.request import Progress, silent
from kvswap.trust import Group, Names, Statement
from kvswap.trust.groups import OPEN


async def publish(
    node: Node,
    data: bytes,
    *,
    model: str | None = None,
    codec: str | None = None,
    truncate: bool = False,
    media_type: str = "text/plain",
    source: str | None = None,
    group: str | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Publish a document and return the JSON contract of `kvswap publish`.

    An artifact that this node already published for the same document, model, codec and readers is reused.
    `group`: seal it for the holders of this group's key.
    """
    began = time.perf_counter()
    text = check_document(data)
    codec = codec or node.settings.codec
    if codec not in CODECS:  # else told as of a newer kvswap, after the prefill
        raise UsageError(
            f"unknown codec {printable(codec)!r}", cause="a typing error", hint=f"--codec {', '.join(CODECS)}"
        )
    check_written(media_type, "the media type")
    check_written(source or "", "the source")
    name = group or node.settings.group
    readers = node.trust.groups.get(name) if name else None
    choice = await node.model.choose(model)
    document = DocumentRef(sha256=hashlib.sha256(data).digest(), length=len(data), media_type=media_type, source=source)
    own = await asyncio.to_thread(_own, node, document_digest(data), choice, readers or OPEN)
    alike = next((s for s in own if _made_with(s.manifest, codec)), None)
    exact = await asyncio.to_thread(_exact, node, own)
    other = await asyncio.to_thread(_other_codec, node, choice, codec, own)
    if alike is not None:
        if other and exact:
            node.background.spawn(_also(node, choice, exact, other))
        return _result(alike, time.perf_counter() - began, reused=True)
    old = await asyncio.to_thread(superseded, node, source, document.reference) if source else []
    made = None
    if exact is None:
        made = "planes" if codec in INEXACT else codec
        life = new_life(node, old[0].artifact if old else None)
        exact = await _prefilled(node, choice, text, document, made, truncate, life, readers, progress)
    for statement in old:  # what stood at the source before is not what stands there now
        row = await asyncio.to_thread(node.store.get_artifact, str(statement.artifact))
        what = source if statement.seal is None else "its source"  # everybody is told why
        if row is not None:
            await withdraw_rows(node, [row], f"{what} has changed: superseded by {exact.artifact}")
    statement = exact if made == codec else await recoded(node, choice, exact, codec, progress)
    if other:
        node.background.spawn(_also(node, choice, exact, other))
    return _result(statement, time.perf_counter() - began, reused=False)


def _other_codec(node: Node, choice: ModelChoice, codec: str, own: list[Statement]) -> str | None:
    """Return the codec to publish in beside `codec`; None where there is none, or it is there already."""
    other = node.settings.also_codec
    able = other != "predictive" or predictor_path(node, choice) is not None
    wanted = other not in ("", codec) and other not in INEXACT and codec not in INEXACT and able
    return other if wanted and not any(_made_with(s.manifest, other) for s in own) else None


async def _also(node: Node, choice: ModelChoice, exact: Statement, codec: str) -> None:
    """Publish the same in the other codec, for readers whom that serves better; unless it is there by now."""
    document = exact.manifest.document.reference if exact.manifest.document else ""
    async with node.background.recoding:
        own = await asyncio.to_thread(_own, node, document, choice, exact.names)
        if any(_made_with(s.manifest, codec) for s in own):
            return
        try:
            await recoded(node, choice, exact, codec, silent)
        except KvswapError as error:
            node.events.add("not_recoded", artifact=str(exact.artifact), codec=codec, reason=error.message)


async def _prefilled(
    node: Node,
    choice: ModelChoice,
    text: str,
    document: DocumentRef,
    codec: str,
    truncate: bool,
    life: Life,
    readers: Group | None,
    progress: Progress,
) -> Statement:
    async def manifest(made: Made) -> Manifest:
        node.learn_prefill(choice, made.result["samples"])
        layout = wire.convert(made.result["layout"], Layout)
        return Manifest(
            version=version_of(layout),
            model=wire.convert(made.result["model"], ModelIdentity),
            document=document,
            prefix=wire.convert(made.result["prefix"], Prefix),
            layout=layout,
            numerics=wire.convert(made.result["numerics"], Numerics),
            tensors=wire.convert(made.result["tensors"], list[TensorDigests]),
            chunks=made.refs,
            probe=wire.convert(made.result["probe"], Probe),
            predictor=made.predictor,
            fingerprint=made.fingerprint,
            life=life,
            publisher=node.identity.own,
        )

    arguments = {"text": text, "block_tokens": node.settings.block_tokens, "truncate": truncate}
    run, predictor = await _job(node, choice, "publish", codec, arguments)
    return await make(node, run, progress, manifest, readers, predictor=predictor)


async def _job(
    node: Node, choice: ModelChoice, job: str, codec: str, arguments: dict[str, Any]
) -> tuple[Run, bytes | None]:
    """Return a job of the model process that makes chunks in a codec, and the predictor that it codes them with."""
    predictor = await asyncio.to_thread(own_predictor, node, choice) if codec == "predictive" else None
    arguments |= {
        "codec": codec,
        "predictor": str(Cid.of(predictor)) if predictor is not None else None,
        "chunks": str(node.store.chunks_directory),
    }

    async def run(on_event: OnEvent) -> dict[str, Any]:
        return await node.model.run(choice, job, on_event, **arguments)

    return run, predictor


async def recoded(node: Node, choice: ModelChoice, exact: Statement, codec: str, progress: Progress) -> Statement:
    """Transcode an own exact artifact into another codec and publish it.

    Raises `UsageError` when that needs a predictor and there is none.
    """

    async def manifest(made: Made) -> Manifest:
        same = msgspec.structs.replace(
            exact.manifest,
            chunks=made.refs,
            predictor=made.predictor,
            fingerprint=made.fingerprint,
            life=new_life(node),
        )
        if not any(ref.codec in INEXACT for ref in made.refs):
            return same
        return msgspec.structs.replace(
            same,
            divergence=wire.convert(made.result["divergence"], Divergence),
            probe=wire.convert(made.result["probe"], Probe),
            tensors=wire.convert(made.result["tensors"], list[TensorDigests]),
        )

    readers = exact.names if isinstance(exact.names, Group) else None
    arguments = {"envelope": exact.envelope, "key": exact.key}
    with node.store.lease([f.id for f in exact.manifest.files]):
        file = None if codec in INEXACT else exact.manifest.fingerprint  # which is of the exact cache
        data = await asyncio.to_thread(node.store.get_chunk, file.id) if file is not None else None
        mark = open_file(file, FINGERPRINT, data, exact.seal) if file is not None and data is not None else None
        run, predictor = await _job(node, choice, "recode", codec, arguments)
        return await make(node, run, progress, manifest, readers, predictor=predictor, mark=mark)


def _own(node: Node, document: str, choice: ModelChoice, names: Names) -> list[Statement]:
    """List what this node published of a document with this model for the same readers, complete and still valid."""
    out: list[Statement] = []
    wanted = names.model(choice.identity.digest, choice.dtype)
    for row in node.store.artifacts(names.document(document)):
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


def _exact(node: Node, own: list[Statement]) -> Statement | None:
    """Return the first of these that is exact and whole in the store."""
    exact = (statement for statement in own if statement.manifest.exact)
    return next((s for s in exact if not node.store.missing([f.id for f in s.manifest.files])), None)


def _result(statement: Statement, seconds: float, *, reused: bool) -> dict[str, Any]:
    manifest = statement.manifest
    return {
        "artifact": str(statement.artifact),
        "document": manifest.document.reference if manifest.document else None,
        "group": statement.names.name if isinstance(statement.names, Group) else None,
        "model": manifest.model.label,
        "tokens": manifest.prefix.tokens,
        "raw_bytes": manifest.raw_bytes,
        "wire_bytes": manifest.wire_bytes,
        "codec": manifest.codecs[0],
        "exact": manifest.exact,
        "divergence": wire.plain(manifest.divergence) if manifest.divergence else None,
        "seconds": round(seconds, 3),
        "reused": reused,
    }
