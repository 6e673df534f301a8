"""The publisher's side for a cache that some engine computed: from tensors in memory to chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.specs import Layout
from kvswap.artifact.tensors import EncodedChunk, LayerTensors, as_part, encode_chunk


def write(
    layout: Layout, tensors: Sequence[LayerTensors], tokens: int, block_tokens: int, codec: str
) -> Iterator[EncodedChunk]:
    """Encode every chunk of a cache of keys and values, in order; sliding layers must still hold all tokens.

    `codec` is one that needs no predictor.
    """
    for block, (start, stop) in enumerate(Blocks(tokens, block_tokens)):
        for group, members in enumerate(layout.members):
            parts = [as_part(tensors[index].tensors[place][:, start:stop].contiguous()) for index, place in members]
            yield encode_chunk(parts, layout.dtype, codec, block, group)
