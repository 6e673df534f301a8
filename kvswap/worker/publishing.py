"""Publishing in the model process: prefill, with encoding in parallel.

While a block is computed, a thread encodes earlier blocks and sends them through the pipe to the node, which stores
them.  At most `LIMITS.blocks_in_flight` encoded or waiting blocks exist at a time.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from kvswap.api.events import PrefillEvent
from kvswap.artifact import chain, layout
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.checkpoints import usual_checkpoints
from kvswap.artifact.manifest import Probe, layout_of
from kvswap.artifact.specs import Layout
from kvswap.core.limits import LIMITS
from kvswap.worker.chunks import chunk_source, known_predictor
from kvswap.worker.conversation import ChunkEvent, FingerprintEvent, JobEvent
from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import PublishedCache, PublishJob, Samples
from kvswap.worker.reusing import ReusedPrefix, reused_prefix

PROBE_TEXT = "\n\nIn summary,"


def publish(context: JobContext, job: PublishJob) -> PublishedCache:
    """Prefill a document and send its chunks and fingerprint as events; return what else the manifest needs."""
    from kvswap import codec as codecs

    codecs.get(job.codec)
    known = known_predictor(context, job.predictor, chunk_source(job.chunks))
    return Publishing(context, job, known).run(job.text, job.block_tokens, job.truncate, job.checkpoints)


class Publishing:
    """One document being published in one codec; `run` is called once."""

    def __init__(self, context: JobContext, job: PublishJob, predictor: Any) -> None:
        self._loaded, self._codec, self._predictor = context.loaded, job.codec, predictor
        self._context, self._job = context, job
        self._pipe = context.pipe
        self._gate = threading.BoundedSemaphore(LIMITS.blocks_in_flight)
        self._layout: Layout | None = None

    def run(self, text: str, block_tokens: int, truncate: bool, checkpoints: Sequence[int] = ()) -> PublishedCache:
        """Prefill a text, send chunks and fingerprint as events, and return what else the manifest needs.

        `checkpoints` are token counts that a reader shall be able to resume at, beside the usual ones; those beyond the
        end are left out.  Raises `InvalidDocument` or `Incompatible` if the text does not fit the model; `truncate`
        cuts it to whole blocks that fit.
        """
        from kvswap.artifact.fingerprint import fingerprint
        from kvswap.artifact.tensors import digest_layer
        from kvswap.model.cache import held_tensors, new_cache
        from kvswap.model.prefill import PROBE_STEPS, check_length, check_reach, greedy
        from kvswap.model.tokenizing import template_of

        loaded = self._loaded
        ids = loaded.tokenize(text)
        question = loaded.tokenize_continuation(PROBE_TEXT)
        if truncate:
            ids = _whole_blocks(ids, loaded.context - len(question) - PROBE_STEPS, block_tokens)
        check_reach(loaded, len(ids), len(question) + PROBE_STEPS, block_tokens)
        check_length(loaded, len(ids))
        more = len(question) + PROBE_STEPS
        blocks = Blocks(len(ids), block_tokens, sorted({n for n in checkpoints if 0 < n < len(ids)}))
        reused = reused_prefix(self._context, self._job, ids, blocks, more)
        cache = reused.cache if reused is not None else new_cache(loaded.model.config, len(ids) + more)
        began = time.perf_counter()
        pending: list[Future[None]] = []
        with ThreadPoolExecutor(1, "kvswap-encode") as pool:
            try:
                samples = self._prefill(cache, ids, blocks, reused, pool, pending)
            except BaseException:
                for future in pending:
                    future.cancel()
                raise
            prefill_seconds = time.perf_counter() - began
            shape = self._layout
            assert shape is not None  # noqa: S101 - a document has a block
            held = held_tensors(cache, shape.layers, len(ids))
            digests = [digest_layer(layer) for layer in held]
            self._pipe.send(FingerprintEvent(data=fingerprint(held)))
            for future in pending:
                future.result()
        probe = greedy(loaded, cache, len(ids), question, PROBE_STEPS)
        template = template_of(loaded.tokenizer, text)
        return PublishedCache(
            model=loaded.identity,
            prefix=chain.token_sequence_of(loaded.identity.digest, ids, block_tokens, template, blocks.cuts),
            layout=shape,
            numerics=loaded.numerics(),
            tensors=digests,
            probe=Probe(question=question, tokens=probe.ids, logits=bytes.fromhex(probe.logits_digest[7:])),
            samples=micro(samples),
            prefill_us=int(prefill_seconds * 1e6),
            reused=reused.tokens if reused is not None else 0,
        )

    def _prefill(
        self,
        cache: Any,
        ids: Sequence[int],
        blocks: Blocks,
        reused: ReusedPrefix | None,
        pool: ThreadPoolExecutor,
        pending: list[Future[None]],
    ) -> list[list[float]]:
        """Prefill, and return [tokens before, tokens, seconds] of each block; encoding jobs are added to `pending`.

        What is `reused` is in the cache, and encoded like the rest.
        """
        from kvswap.model.cache import capture_block
        from kvswap.model.prefill import Block, canonical_prefill

        samples: list[list[float]] = []
        start = reused.tokens if reused is not None else 0
        held = (Block(number, *blocks.span(number), 0.0) for number in range(blocks.until(start)))
        computed = canonical_prefill(self._loaded, cache, ids, blocks.block_tokens, start, blocks.cuts)
        for block in itertools.chain(held, computed):
            self._pipe.check()
            if self._layout is None:
                self._layout = self._planned(cache, blocks)
            shape, span = self._layout, (block.start, block.stop)
            if block.start >= start:
                samples.append([block.start, block.stop - block.start, block.seconds])
            self._gate.acquire()
            groups = [g for g in range(len(shape.groups)) if layout.raw_length(shape, g, *span)]
            if reused is not None and block.start < start:
                tensors = [(group, reused.parts(shape, group, *span)) for group in groups]
            else:
                tensors = [(group, capture_block(cache, shape, group, *span)) for group in groups]
            pending.append(pool.submit(self._encode, shape, tensors, block))
            self._pipe.send(PrefillEvent(block=block.index + 1, blocks=len(blocks), tokens=block.stop))
            while pending and pending[0].done():
                pending.pop(0).result()
        return samples

    def _planned(self, cache: Any, blocks: Blocks) -> Layout:
        """Return the layout of a cache that holds its first block."""
        from kvswap.model.cache import layer_specs

        loaded = self._loaded
        specs = layer_specs(cache)
        groups = layout.plan_groups(specs, loaded.dtype, blocks.block_tokens)
        held = usual_checkpoints(specs, loaded.dtype, blocks, sorted(self._job.checkpoints))
        return layout_of(loaded.dtype, loaded.rope(), specs, groups, held)

    def _encode(self, shape: Layout, tensors: list[tuple[int, list[Any]]], block: Any) -> None:
        from kvswap.artifact.tensors import Layers, as_part, by_layer, codec_for, context_of, encode_chunk

        try:
            earlier: Layers = {}
            for group, parts in tensors:
                views = [as_part(t) for t in parts]
                first, _ = layout.stored_span(shape.layers[shape.groups[group].layers[0]], block.start, block.stop)
                context = context_of(self._predictor, shape, group, first, earlier)
                codec = codec_for(shape, group, self._codec)
                chunk = encode_chunk(views, shape.group_dtype(group), codec, block.index, group, context)
                if self._predictor is not None:
                    earlier |= by_layer(shape, group, views)
                parts.clear()
                send(chunk, self._pipe.send)
        finally:
            self._gate.release()


def send(chunk: Any, send_event: Callable[[JobEvent], None]) -> None:
    """Send an encoded chunk as an event."""
    send_event(ChunkEvent(ref=chunk.ref, data=chunk.wire, us=int(chunk.seconds * 1e6)))


def micro(samples: list[list[float]]) -> Samples:
    """Convert [position, tokens, seconds] to (position, tokens, microseconds), as the pipe carries no floats."""
    return [(int(at), int(tokens), int(seconds * 1e6)) for at, tokens, seconds in samples]


def _whole_blocks(ids: list[int], headroom: int, block_tokens: int) -> list[int]:
    if len(ids) <= headroom:
        return ids
    return ids[: headroom // block_tokens * block_tokens]
