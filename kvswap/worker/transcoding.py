"""Transcoding an artifact in the model process, which knows what a lossy codec does to the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from kvswap.artifact import layout
from kvswap.artifact.assembly import ChunkSource
from kvswap.artifact.manifest import ChunkRef, Manifest
from kvswap.artifact.sealing import Seal
from kvswap.core.ids import Cid
from kvswap.worker.chunks import chunk_source, known_predictor
from kvswap.worker.comparing import STEPS, compare
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import TranscodedCache, TranscodeJob
from kvswap.worker.publishing import PROBE_TEXT, send


def transcode(context: JobContext, job: TranscodeJob) -> TranscodedCache:
    """Transcode an artifact's chunks into another codec, and send them; for a lossy one measure its effect."""
    from kvswap import codec as codecs
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
    return _effect(loaded, _Cache(manifest, source, statement.seal), _Cache(other, wires.__getitem__, None), question)


class _Cache(msgspec.Struct, frozen=True):
    """A cache that can be loaded again and again."""

    manifest: Manifest
    source: ChunkSource
    seal: Seal | None

    def tensors(self, headroom: int = 0) -> Any:
        from kvswap.artifact.assembly import load

        return load(self.manifest, self.source, headroom=headroom, seal=self.seal)

    def on(self, loaded: Any) -> Callable[[int], Any]:
        from kvswap.model.cache import build_cache

        tokens = self.manifest.prefix.tokens
        return lambda headroom: build_cache(loaded.model.config, self.tensors(headroom), tokens, loaded.device)


def _effect(loaded: Any, right: _Cache, other: _Cache, question: list[int]) -> TranscodedCache:
    """Return how far answers from the other cache are from those of the right one, its probe and tensor digests."""
    from kvswap.artifact.tensors import digest_layer

    divergence, probe = compare(loaded, right.on(loaded), other.on(loaded), right.manifest.prefix.tokens, question)
    return TranscodedCache(divergence=divergence, probe=probe, tensors=[digest_layer(held) for held in other.tensors()])
