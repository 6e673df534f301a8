"""Transcoding an artifact in the model process, which knows what a lossy codec does to the answers."""

from __future__ import annotations

import msgspec

from kvswap.artifact import layout
from kvswap.artifact.manifest import ChunkRef
from kvswap.core.ids import Cid
from kvswap.worker.chunks import chunk_source, known_predictor
from kvswap.worker.comparing import STEPS, compare, loading_anew
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import TranscodedCache, TranscodeJob
from kvswap.worker.publishing import PROBE_TEXT, send


def transcode(context: JobContext, job: TranscodeJob) -> TranscodedCache:
    """Transcode an artifact's chunks into another codec, and send them; for a lossy one measure its effect."""
    from kvswap import codec as codecs
    from kvswap.artifact.assembly import load
    from kvswap.artifact.tensors import digest_layer
    from kvswap.artifact.transcode import transcode as coded_anew
    from kvswap.model.prefill import check_reach_of
    from kvswap.trust import one_key, read_statement

    loaded, source = context.loaded, chunk_source(job.chunks)
    statement = read_statement(job.envelope, one_key(job.key))
    manifest = statement.manifest
    layout.check_compatible(manifest, loaded.identity.digest, loaded.dtype)
    known = known_predictor(context, job.predictor, source)
    lossless = codecs.get(job.codec).lossless
    question = manifest.probe.question or loaded.tokenize_continuation(PROBE_TEXT)
    if not lossless:
        check_reach_of(loaded, manifest, len(question) + STEPS)
    refs: list[ChunkRef] = []
    wires: dict[Cid, bytes] = {}
    for chunk in coded_anew(manifest, source, job.codec, known, context.predictors, statement.seal):
        context.pipe.check()
        refs.append(chunk.ref)
        if not lossless:
            wires[chunk.ref.id] = chunk.wire
        send(chunk, context.pipe.send)
    if lossless:
        return TranscodedCache()
    other = msgspec.structs.replace(manifest, chunks=refs, predictor=None)
    right = loading_anew(loaded, manifest, source, statement.seal)
    lossy = loading_anew(loaded, other, wires.__getitem__, None)
    divergence, probe = compare(loaded, right, lossy, manifest.prefix.tokens, question)
    tensors = [digest_layer(held) for held in load(other, wires.__getitem__)]
    return TranscodedCache(divergence=divergence, probe=probe, tensors=tensors)
