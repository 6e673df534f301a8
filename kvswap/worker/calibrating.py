"""What prefill and each codec cost on this machine, measured on keys and values computed here."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from kvswap.worker.inbox import JobContext
from kvswap.worker.messages import Calibrated, CalibrateJob
from kvswap.worker.publishing import micro


def calibrate(context: JobContext, job: CalibrateJob) -> Calibrated:
    """Measure prefill of a few blocks, and codecs on what they hold, after a warm-up."""
    from kvswap.model.cache import new_cache
    from kvswap.model.prefill import canonical_prefill

    loaded, size = context.loaded, job.block_tokens
    usable = max(1, min(job.blocks, loaded.context // size))
    vocabulary = int(loaded.model.config.get_text_config(decoder=True).vocab_size)
    ids = [(i * 7919) % vocabulary for i in range(usable * size)]
    samples: list[list[float]] = []
    for take in (1, usable):  # the first pass warms caches and allocators
        samples = []
        cache = new_cache(loaded.model.config, len(ids))
        for block in canonical_prefill(loaded, cache, ids[: take * size], size):
            samples.append([block.start, block.stop - block.start, block.seconds])
            context.pipe.check()
    known = Path(job.predictor) if job.predictor else None
    return Calibrated(samples=micro(samples), codecs=codec_rates(loaded, cache, usable * size, size, known))


def codec_rates(
    loaded: Any, cache: Any, tokens: int, block_tokens: int, predictor: Path | None
) -> dict[str, tuple[int, int, int]]:
    """Measure each codec: return by name the raw bytes, and the microseconds of encoding and of loading them.

    Encoding uses one thread, loading one for each processor.  Loading is what `artifact.assembly.load` does with a
    chunk: digest, decode, digest.
    """
    from kvswap import codec as codecs
    from kvswap.artifact import layout
    from kvswap.artifact.blocks import Blocks
    from kvswap.artifact.manifest import layout_of
    from kvswap.artifact.tensors import Layers, as_part, by_layer, context_of, digest_parts, encode_chunk
    from kvswap.codec import predictive
    from kvswap.model.cache import capture_block, layer_specs

    specs = layer_specs(cache)
    shape = layout_of(loaded.dtype, "", specs, layout.plan_groups(specs, loaded.dtype, block_tokens))
    groups = range(len(shape.groups))
    known = predictive.load(predictor.read_bytes()) if predictor is not None else None
    blocks = [
        [[as_part(t) for t in capture_block(cache, shape, group, *span)] for group in groups]
        for span in Blocks(tokens, block_tokens)
    ]
    out: dict[str, tuple[int, int, int]] = {}
    predicted = known.codec if known is not None else None
    for name in ("raw", "planes", *([predicted] if predicted is not None else [])):
        encoded: list[list[tuple[Any, ...]]] = []
        for number, block in enumerate(blocks):
            earlier: Layers = {}
            chunks: list[tuple[Any, ...]] = []
            for group, parts in enumerate(block):
                used = known if name == predicted else None
                context = context_of(used, shape, group, number * block_tokens, earlier)
                dtype = shape.group_dtype(group)
                chunks.append((encode_chunk(parts, dtype, name, number, group, context), context, parts, dtype))
                earlier |= by_layer(shape, group, parts)
            encoded.append(chunks)

        def load(chunks: list[tuple[Any, ...]]) -> None:
            for chunk, context, parts, dtype in chunks:
                blake3(chunk.wire).digest()
                made = [np.empty(p.shape, p.dtype) for p in parts]
                codecs.decode(chunk.ref.codec, chunk.wire, made, dtype, context)
                digest_parts(made)

        load(encoded[0])  # warm-up of tables and kernels
        began = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(load, encoded))
        seconds = time.perf_counter() - began
        every = [chunk for chunks in encoded for chunk, *_ in chunks]
        raw = sum(c.ref.raw_length for c in every)
        out[name] = (raw, int(sum(c.seconds for c in every) * 1e6), int(seconds * 1e6))
    return out
