"""The publisher's side for a cache that some engine computed: from tensors in memory to chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvswap.artifact import layout as layouts
from kvswap.artifact.manifest import Layout
from kvswap.artifact.tensors import EncodedChunk, LayerTensors, as_part, encode_chunk


def write(
    layout: Layout, tensors: Sequence[LayerTensors], tokens: int, block_tokens: int, codec: str
) -> Iterator[EncodedChunk]:
    """Encode every chunk of a cache, in order; sliding layers must still hold all tokens.

    `codec` is one that needs no predictor.
    """
    for block in range(layouts.block_count(tokens, block_tokens)):
        start, stop = layouts.block_span(tokens, block_tokens, block)
        for layer_group, members in enumerate(layout.runs):
            parts = [
                as_part(tensor[:, start:stop].contiguous())
                for index in members
                for tensor in (tensors[index].k, tensors[index].v)
            ]
            yield encode_chunk(parts, layout.dtype, codec, block, layer_group)
