"""The tokens and tensors that a chunk holds, the chunks that a reader needs, and the units of work they form.

A *full* layer keeps every token, so its part of a block is the block.  A *sliding* layer of window W
keeps the last W-1 tokens; of a block it stores those of the last W-1 that lie in the block, which is
what a reader needs to resume at that block's end - and nothing that a reader could never use.
A *state* is stored at checkpoints alone, and of all its chunks a reader needs those of the one that it resumes at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import Manifest
from kvswap.artifact.specs import ITEM_BYTES, LayerGroup, LayerSpec, Layout
from kvswap.core.errors import Incompatible, UsageError
from kvswap.core.limits import LIMITS

FINGERPRINT_TOKENS = 64
FINGERPRINT_WIDTH = 8


def block_span(tokens: int, block_tokens: int, block: int) -> tuple[int, int]:
    """Return the [start, stop) of a block, in tokens, where there are no cuts."""
    return block * block_tokens, min((block + 1) * block_tokens, tokens)


def block_count(tokens: int, block_tokens: int) -> int:
    """Count the blocks of a document of `tokens` tokens without cuts; the last one may be shorter."""
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


def plan_groups(layers: Sequence[LayerSpec], dtype: str, block_tokens: int) -> list[LayerGroup]:
    """Group tensors of layers of one kind and shape so that a full block's chunk comes near the target size.

    `dtype` is the layout's.  The tensors that a layer has for each token are in one group, its states of one dtype and
    as many rows in another.
    """
    alike: dict[tuple[LayerSpec, tuple[str, ...]], list[int]] = {}
    for index, layer in enumerate(layers):
        for names in _together(layer):
            alike.setdefault((layer, names), []).append(index)
    groups = []
    for (layer, names), members in alike.items():
        start, stop = stored_span(layer, 0, block_tokens)
        tensors = [tensor for tensor in layer.tensors if tensor.name in names]
        each = max(1, sum(math.prod(t.part_shape(stop - start)) * ITEM_BYTES[t.dtype or dtype] for t in tensors))
        fit = max(1, LIMITS.chunk_target_bytes // each)
        pieces = -(-len(members) // fit)
        even = -(-len(members) // pieces)
        groups += [LayerGroup(tuple(members[i : i + even]), names) for i in range(0, len(members), even)]
    return groups


def _together(layer: LayerSpec) -> list[tuple[str, ...]]:
    """Return the names of a layer's tensors, those together that can share a chunk: of one dtype, as many rows each."""
    out: dict[tuple[int | None, str | None], list[str]] = {}
    for tensor in layer.tensors:
        out.setdefault((tensor.rows, tensor.dtype), []).append(tensor.name)
    return [tuple(names) for names in out.values()]


def part_shapes(layout: Layout, group: int, start: int, stop: int) -> list[tuple[int, int, int]]:
    """List the shapes [head, row, dim] of a group's tensors, layer by layer, in its chunk of block [start, stop)."""
    shapes = []
    for index, place in layout.members[group]:
        layer = layout.layers[index]
        first, last = stored_span(layer, start, stop)
        shapes.append(layer.tensors[place].part_shape(last - first))
    return shapes


def raw_length(layout: Layout, group: int, start: int, stop: int) -> int:
    """Compute the length in bytes of a chunk before coding: one group for block [start, stop)."""
    if layout.is_state(group) and stop not in layout.checkpoint_set:
        return 0
    layers = layout.groups[group].layers  # all alike
    first, last = stored_span(layout.layers[layers[0]], start, stop)
    numbers = sum(math.prod(tensor.part_shape(last - first)) for tensor in layout.group_tensors(group))
    return len(layers) * numbers * ITEM_BYTES[layout.group_dtype(group)]


def resumable(manifest: Manifest, tokens: int) -> int:
    """Return the most tokens, at most `tokens`, after which a reader can resume: a checkpoint, or a block's end.

    It is 0 if there are none.
    """
    tokens = min(tokens, manifest.prefix.tokens)
    ends = [end for end in manifest.layout.checkpoints if end <= tokens]
    if tokens == manifest.prefix.tokens:
        ends.append(tokens)
    if not manifest.layout.has_states:
        ends.append(tokens // manifest.prefix.block_tokens * manifest.prefix.block_tokens)
    return max(ends, default=0)


def uses_inner(manifest: Manifest, tokens: int) -> bool:
    """Return True if who resumes after `tokens` tokens uses windows or states that are held before the end alone.

    These are no part of what checks of the whole have to look at: of untrusted publishers nobody resumes there.
    """
    return tokens < manifest.prefix.tokens and not manifest.layout.keeps_all


def resumes_at(manifest: Manifest, tokens: Iterable[int]) -> bool:
    """Return True if a reader can resume after each of these token counts, those beyond the end aside."""
    return all(resumable(manifest, count) == count for count in tokens if count <= manifest.prefix.tokens)


def needed(manifest: Manifest, tokens: int | None = None) -> list[int]:
    """List the indices of the chunks that a reader needs to resume after `tokens` (default: all).

    Sliding layers need only the blocks that reach into their window, states only the last.  The order is that in which
    the reader uses them: by block.  Raises `UsageError` unless a reader can resume there (`resumable`).
    """
    prefix, layout = manifest.prefix, manifest.layout
    stop = prefix.tokens if tokens is None else tokens
    if not 0 < stop <= prefix.tokens or resumable(manifest, stop) != stop:
        raise UsageError(
            f"cannot resume after {stop} tokens",
            cause="its states are held at other places"
            if layout.has_states
            else f"only after whole blocks of {prefix.block_tokens} tokens",
        )
    blocks = manifest.blocks
    states = [layout.is_state(group) for group in range(len(layout.groups))]
    begins = [
        0 if states[g] else held_span(layout.layers[group.layers[0]], stop)[0] for g, group in enumerate(layout.groups)
    ]
    out = []
    for index, chunk in enumerate(manifest.chunks):
        _start, end = blocks.span(chunk.block)
        if end > stop:
            break
        if end == stop if states[chunk.run] else end > begins[chunk.run]:
            out.append(index)
    return out


def needed_files(manifest: Manifest, tokens: int | None = None) -> list[int]:
    """List the indices into `manifest.files` of what such a reader needs: the chunks of `needed` and the predictor."""
    return needed(manifest, tokens) + ([len(manifest.chunks)] if manifest.predictor else [])


def expected_chunks(layout: Layout, blocks: Blocks) -> Iterator[tuple[int, int, int]]:
    """Iterate over (block, group, raw length) of every chunk that a manifest of this layout must list, in order.

    Every step gives a chunk: a layout with many groups that have none costs no more than one without them.
    """
    every = range(len(layout.groups))
    filled = [group for group in every if raw_length(layout, group, 0, 1) or layout.is_state(group)]
    growing = [group for group in filled if not layout.is_state(group)]
    lengths: dict[tuple[int, int], int] = {}  # a chunk's length depends on its group and how many tokens it spans
    for block, (start, stop) in enumerate(blocks):
        for group in filled if stop in layout.checkpoint_set else growing:
            length = lengths.get((group, stop - start))
            if length is None:
                length = lengths[group, stop - start] = raw_length(layout, group, start, stop)
            yield block, group, length


def fingerprint_rows(layers: Sequence[LayerSpec]) -> tuple[int, int]:
    """Count the tensors whose rows are tokens, and the states: what a fingerprint has rows for."""
    tensors = [tensor for layer in layers for tensor in layer.tensors]
    growing = sum(tensor.per == "token" for tensor in tensors)
    return growing, len(tensors) - growing


def in_fingerprint(manifest: Manifest) -> bool:
    """Return True if the fingerprint has something of any layer: of one whose window has moved on it has nothing."""
    tokens = manifest.prefix.tokens
    return any(layer.has_states or held_span(layer, tokens)[0] == 0 for layer in manifest.layout.layers)


def fingerprint_length(manifest: Manifest) -> int:
    """Compute the length of a fingerprint in bytes: eight float16 for each 64 tokens of a tensor, and each state."""
    parts = -(-manifest.prefix.tokens // FINGERPRINT_TOKENS)
    growing, states = fingerprint_rows(manifest.layout.layers)
    return (parts * growing + states) * FINGERPRINT_WIDTH * 2


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
    """A unit of work that is computed or fetched as a whole: a block, or one group of its layers."""

    block: int
    layers: tuple[int, ...]  # of the cache, in order
    chunks: tuple[int, ...]  # of the manifest, that a reader of the document's end needs of them


def work_units(manifest: Manifest, tokens: int | None = None, *, by_layer_group: bool = True) -> list[WorkUnit]:
    """List the units of the first `tokens` tokens in the order of computing: by block, and where possible by group.

    Layers are computed in order, so a group can be a unit only where groups are neighbouring layers that keep every
    token: what a sliding layer or a state keeps depends on where the reader goes on.
    """
    layout = manifest.layout
    stop = manifest.prefix.tokens if tokens is None else tokens
    in_order = [layer for group in layout.groups for layer in group.layers] == list(range(len(layout.layers)))
    parts: Sequence[Sequence[int]] = [group.layers for group in layout.groups]
    if not (by_layer_group and in_order and layout.keeps_all):
        parts = [range(len(layout.layers))]
    chunks: dict[tuple[int, int], list[int]] = {}
    for index in needed(manifest, tokens):
        chunk = manifest.chunks[index]
        part = chunk.run if len(parts) > 1 else 0
        chunks.setdefault((chunk.block, part), []).append(index)
    return [
        WorkUnit(block, tuple(layers), tuple(chunks.get((block, part), ())))
        for block in range(manifest.blocks.until(stop))
        for part, layers in enumerate(parts)
    ]
