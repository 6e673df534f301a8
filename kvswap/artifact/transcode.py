"""Transcoding: the same cache in another codec, decoded and checked block by block, then encoded, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from kvswap.artifact import layout as layouts
from kvswap.artifact.assembly import ChunkSource, Predictors, read_predictor
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.sealing import Seal
from kvswap.artifact.tensors import EncodedChunk, Layers, by_layer, codec_for, context_of, decode_chunk, encode_chunk
from kvswap.codec import Part, Predictor
from kvswap.codec.parts import WORD


def transcode(
    manifest: Manifest,
    source: ChunkSource,
    codec: str,
    predictor: Predictor | None,
    known: Predictors | None = None,
    seal: Seal | None = None,
) -> Iterator[EncodedChunk]:
    """Transcode every chunk of an artifact into another codec, in order and not sealed.

    `predictor` is the one for `predictive` chunks.  `source` must have all chunks, those included that a reader of
    the whole document does not need.  Raises `IntegrityError` naming a damaged chunk.
    """
    layout, blocks = manifest.layout, manifest.blocks
    own = read_predictor(manifest.predictor.id, source, known, seal) if manifest.predictor else None
    for block, refs in groupby(manifest.chunks, lambda ref: ref.block):
        span = blocks.span(block)
        read: Layers = {}
        written: Layers = {}
        for ref in refs:
            first, _ = layouts.stored_span(layout.layers[layout.groups[ref.run].layers[0]], *span)
            dtype = layout.group_dtype(ref.run)
            parts: list[Part] = [np.empty(s, WORD[dtype]) for s in layouts.part_shapes(layout, ref.run, *span)]
            decode_chunk(manifest, ref, source(ref.id), parts, own, read, seal)
            context = context_of(predictor, layout, ref.run, first, written)
            yield encode_chunk(parts, dtype, codec_for(layout, ref.run, codec), block, ref.run, context)
            if predictor is not None:
                written |= by_layer(layout, ref.run, parts)
