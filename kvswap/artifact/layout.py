"""The tokens and layers that a chunk holds, the chunks that a reader needs, and the units of work they form.

A *full* layer keeps every token, so its part of a block is the block.  A *sliding* layer of window W
keeps the last W-1 tokens; of a block it stores those of the last W-1 that lie in the block, which is
what a reader needs to resume at that block's end - and nothing that a reader could never use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvswap.artifact.manifest import ITEM_BYTES, LayerSpec, Layout, Manifest
from kvswap.core.errors import Incompatible, UsageError
from kvswap.core.limits import LIMITS

FINGERPRINT_TOKENS = 64
FINGERPRINT_WIDTH = 8


def block_span(tokens: int, block_tokens: int, block: int) -> tuple[int, int]:
    """Return the [start, stop) of a block, in tokens."""
    return block * block_tokens, min((block + 1) * block_tokens, tokens)


def block_count(tokens: int, block_tokens: int) -> int:
    """Count the blocks of a document of `tokens` tokens; the last one may be shorter."""
    return -(-tokens // block_tokens)


def stored_span(layer: LayerSpec, start: int, stop: int) -> tuple[int, int]:
    """Return the [first, stop) of the tokens of block [start, stop) that this layer's chunk holds.

    It is empty for a sliding layer of window 1.
    """
    if layer.window is None:
        return start, stop
    return max(start, stop - (layer.window - 1)), stop


def held_span(layer: LayerSpec, tokens: int) -> tuple[int, int]:
    """Return the [first, stop) of the tokens that this layer holds after `tokens` tokens of the document."""
    return (0, tokens) if layer.window is None else (max(0, tokens - (layer.window - 1)), tokens)


def plan_layer_groups(layers: Sequence[LayerSpec], block_tokens: int, itemsize: int) -> list[list[int]]:
    """Group layers of one shape and kind so that a full block's chunk comes near the target size."""
    layer_groups: list[list[int]] = []
    groups: dict[LayerSpec, list[int]] = {}
    for index, layer in enumerate(layers):
        groups.setdefault(layer, []).append(index)
    for layer, members in groups.items():
        start, stop = stored_span(layer, 0, block_tokens)
        each = max(1, layer.heads * (layer.k_dim + layer.v_dim) * (stop - start) * itemsize)
        fit = max(1, LIMITS.chunk_target_bytes // each)
        pieces = -(-len(members) // fit)
        even = -(-len(members) // pieces)
        layer_groups += [members[i : i + even] for i in range(0, len(members), even)]
    return layer_groups


def part_shapes(layout: Layout, layer_group: int, start: int, stop: int) -> list[tuple[int, int, int]]:
    """List the shapes [head, token, dim] of K, then V, for each layer of the layer group, for block [start, stop)."""
    shapes = []
    for index in layout.runs[layer_group]:
        layer = layout.layers[index]
        first, last = stored_span(layer, start, stop)
        shapes += [(layer.heads, last - first, layer.k_dim), (layer.heads, last - first, layer.v_dim)]
    return shapes


def raw_length(layout: Layout, layer_group: int, start: int, stop: int) -> int:
    """Compute the length in bytes of a chunk before coding: one run for block [start, stop)."""
    return sum(h * t * d for h, t, d in part_shapes(layout, layer_group, start, stop)) * ITEM_BYTES[layout.dtype]


def needed(manifest: Manifest, tokens: int | None = None) -> list[int]:
    """List the indices of the chunks that a reader needs to resume after `tokens` (a block's end; default: all).

    Sliding layers need only the blocks that reach into their window.  The order is that in which the reader
    uses them: by block.  Raises `UsageError` unless `tokens` is the end of a block.
    """
    prefix = manifest.prefix
    stop = prefix.tokens if tokens is None else tokens
    if stop != prefix.tokens and (stop % prefix.block_tokens or not 0 < stop < prefix.tokens):
        raise UsageError(
            f"cannot resume after {stop} tokens", cause=f"only after whole blocks of {prefix.block_tokens} tokens"
        )
    out = []
    for index, chunk in enumerate(manifest.chunks):
        _start, end = block_span(prefix.tokens, prefix.block_tokens, chunk.block)
        if end > stop:
            continue
        layer = manifest.layout.layers[manifest.layout.runs[chunk.run][0]]
        if end > held_span(layer, stop)[0]:
            out.append(index)
    return out


def needed_files(manifest: Manifest, tokens: int | None = None) -> list[int]:
    """List the indices into `manifest.files` of what such a reader needs: the chunks of `needed` and the predictor."""
    return needed(manifest, tokens) + ([len(manifest.chunks)] if manifest.predictor else [])


def expected_chunks(layout: Layout, tokens: int, block_tokens: int) -> Iterator[tuple[int, int, int]]:
    """Iterate over (block, run, raw length) of every chunk that a manifest of this layout must list, in order."""
    lengths: dict[tuple[int, int], int] = {}  # a chunk's length depends on its run and how many tokens it spans
    for block in range(block_count(tokens, block_tokens)):
        start, stop = block_span(tokens, block_tokens, block)
        for layer_group in range(len(layout.runs)):
            length = lengths.get((layer_group, stop - start))
            if length is None:
                length = lengths[layer_group, stop - start] = raw_length(layout, layer_group, start, stop)
            if length:
                yield block, layer_group, length


def fingerprint_length(manifest: Manifest) -> int:
    """Compute the length of a fingerprint in bytes: for each 64 tokens, layer, and K or V, eight float16."""
    parts = -(-manifest.prefix.tokens // FINGERPRINT_TOKENS)
    return parts * len(manifest.layout.layers) * 2 * FINGERPRINT_WIDTH * 2


def check_compatible(manifest: Manifest, identity: bytes, dtype: str) -> None:
    """Raise `Incompatible` naming the field unless a reader of this model can use the artifact."""
    if manifest.model.digest != identity:
        raise Incompatible(
            f"the artifact was made by model {manifest.model.digest.hex()[:16]} ({manifest.model.label}), "
            f"this node has {identity.hex()[:16]}",
            cause="other weights, configuration or tokenizer, whatever the name says",
            hint="kvswap model ls",
            field="model",
        )
    if manifest.layout.dtype != dtype:
        raise Incompatible(
            f"the artifact holds {manifest.layout.dtype}, this node computes in {dtype}",
            cause="the publisher chose another dtype",
            hint=f"kvswap daemon --dtype {manifest.layout.dtype}",
            field="dtype",
        )


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """A unit of work that is computed or fetched as a whole: a block, or one layer group of it."""

    block: int
    layers: tuple[int, ...]  # of the model, in order
    chunks: tuple[int, ...]  # of the manifest, that a reader of the document's end needs of them


def work_units(manifest: Manifest, tokens: int | None = None, *, by_layer_group: bool = True) -> list[WorkUnit]:
    """List the work units of the first `tokens` tokens in the order of computing: by block, or by layer group.

    Layers are computed in order, so a layer group can be a unit only where these are neighbouring layers that
    keep every token: what a sliding layer keeps depends on where the reader goes on.
    """
    prefix, layout = manifest.prefix, manifest.layout
    stop = prefix.tokens if tokens is None else tokens
    in_order = [layer for layer_group in layout.runs for layer in layer_group] == list(range(len(layout.layers)))
    full = all(layer.window is None for layer in layout.layers)
    parts = layout.runs if by_layer_group and in_order and full else [list(range(len(layout.layers)))]
    chunks: dict[tuple[int, int], list[int]] = {}
    for index in needed(manifest, tokens):
        chunk = manifest.chunks[index]
        part = chunk.run if len(parts) > 1 else 0
        chunks.setdefault((chunk.block, part), []).append(index)
    return [
        WorkUnit(block, tuple(layers), tuple(chunks.get((block, part), ())))
        for block in range(block_count(stop, prefix.block_tokens))
        for part, layers in enumerate(parts)
    ]
