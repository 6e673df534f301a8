"""Where the states of a cache are held: which token counts a reader can resume at.

A state's size does not depend on the text.  Where it is small beside a block of keys and values (the last inputs of a
short convolution), every block's end is a checkpoint; where it weighs as much as several blocks (the matrices of a
linear attention), checkpoints are as far apart as keeps them a small part of the artifact.  The end is always one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.layout import stored_span
from kvswap.artifact.specs import ITEM_BYTES, LayerSpec

EVERY_BLOCK = 0.05  # of a block's bytes: up to here a checkpoint in every block is cheap
SPARSE = 0.2  # of the bytes between two checkpoints


def state_bytes(layers: Sequence[LayerSpec], dtype: str) -> int:
    """Compute the bytes of all states at one checkpoint; `dtype` is the layout's."""
    return sum(
        math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype or dtype]
        for layer in layers
        for tensor in layer.tensors
        if tensor.per == "checkpoint"
    )


def block_bytes(layers: Sequence[LayerSpec], dtype: str, block_tokens: int) -> int:
    """Compute the bytes of what all layers store of a whole block, states left out; `dtype` is the layout's."""
    total = 0
    for layer in layers:
        start, stop = stored_span(layer, 0, block_tokens)
        for tensor in layer.tensors:
            if tensor.per == "token":
                total += math.prod(tensor.part_shape(stop - start)) * ITEM_BYTES[tensor.dtype or dtype]
    return total


def spacing(layers: Sequence[LayerSpec], dtype: str, block_tokens: int) -> int:
    """Compute after how many blocks there is a checkpoint; 0 if there are no states or nothing that grows."""
    state, block = state_bytes(layers, dtype), block_bytes(layers, dtype, block_tokens)
    if not state or not block:
        return 0
    return 1 if state <= EVERY_BLOCK * block else math.ceil(state / (SPARSE * block))


def usual_checkpoints(layers: Sequence[LayerSpec], dtype: str, blocks: Blocks, wanted: Iterable[int] = ()) -> list[int]:
    """Return the checkpoints of a cache: the usual ones, those that are wanted and end a block, and the end.

    There are none where no layer keeps a state and nothing was wanted but the ends of whole blocks.
    """
    points = {point for point in wanted if blocks.ends_at(point)}
    if not any(layer.has_states for layer in layers):
        return sorted(points | {blocks.tokens}) if blocks.cuts else []
    if every := spacing(layers, dtype, blocks.block_tokens):
        points |= set(range(every * blocks.block_tokens, blocks.tokens, every * blocks.block_tokens))
    return sorted(points | {blocks.tokens})
