"""Transcoding: the same cache in another codec, decoded and checked block by block, then encoded, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from kvswap.artifact import layout as layouts
from kvswap.artifact.assembly import ChunkSource, Predictors, read_predictor
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.sealing import Seal
from kvswap.artifact.tensors import EncodedChunk, Layers, by_layer, context_of, decode_chunk, encode_chunk
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
    layout, prefix = manifest.layout, manifest.prefix
    own = read_predictor(manifest.predictor.id, source, known, seal) if manifest.predictor else None
    for block, refs in groupby(manifest.chunks, lambda ref: ref.block):
        span = layouts.block_span(prefix.tokens, prefix.block_tokens, block)
        read: Layers = {}
        written: Layers = {}
        for ref in refs:
            layer_group = layout.runs[ref.run]
            first, last = layouts.stored_span(layout.layers[layer_group[0]], *span)
            parts: list[Part] = []
            for index in layer_group:
                layer = layout.layers[index]
                for dim in (layer.k_dim, layer.v_dim):
                    parts.append(np.empty((layer.heads, last - first, dim), WORD[layout.dtype]))
            decode_chunk(manifest, ref, source(ref.id), parts, own, read, seal)
            context = context_of(predictor, layer_group, first, written)
            yield encode_chunk(parts, layout.dtype, codec, block, ref.run, context)
            if predictor is not None:
                written |= by_layer(layer_group, parts)
