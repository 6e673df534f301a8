"""States that are made here: cut to their first tokens, written for another server, or built of keys and values.

A `StateShape` is how one server's states look, learnt from one that it saved (`shape_of`).  Nothing else says it: the
format changes within weeks, and no build number can be relied on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvswap.core.errors import Incompatible, UsageError
from kvswap.integrations.llamacpp.ggml import GgmlType
from kvswap.integrations.llamacpp.state import (
    Bytes,
    CellCache,
    CellTensor,
    SequenceState,
    SlidingCheckpoint,
    SlotFile,
)


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The look of one cache of a server: its formats, and for each layer the bytes that a token takes."""

    key_type: GgmlType
    value_type: GgmlType
    key_rows: tuple[int, ...]
    value_rows: tuple[int, ...]
    rotations: tuple[int, int] | None

    @property
    def token_bytes(self) -> int:
        """The bytes of one token in all layers of this cache."""
        return sum(self.key_rows) + sum(self.value_rows)


@dataclass(frozen=True, slots=True)
class StateShape:
    """The look of one server's states: two states of one shape can take each other's place.

    `stream` and `sequence` are of the slot that the state was saved of; `checkpoints`: slot files have an appendix.
    """

    version: int
    streams: int
    stream: int
    sequence: int
    transposed: bool
    packed: bool
    checkpoints: bool
    caches: tuple[CacheShape, ...]

    @property
    def slides(self) -> bool:
        """True if some layers slide."""
        return len(self.caches) > 1

    def of_slot(self, slot: int) -> StateShape:
        """Return the shape of the states of another slot of the same server."""
        return replace(self, stream=slot if self.streams > 1 else 0, sequence=slot)


@dataclass(frozen=True, slots=True, eq=False)
class LayerRows:
    """Keys and values of one layer, each [token, bytes of a row], in the order of positions."""

    keys: Bytes
    values: Bytes


def shape_of(file: SlotFile) -> StateShape:
    """Return how states of the server look that saved this file.  Raises `UsageError` for one without tokens."""
    state = file.state
    if not state.tokens:
        raise UsageError("a state without tokens does not say how states look", cause="the slot was empty")
    first = state.caches[0]
    return StateShape(
        version=state.version,
        streams=first.streams,
        stream=first.stream,
        sequence=first.sequence,
        transposed=first.transposed,
        packed=file.packed,
        checkpoints=file.checkpoints is not None,
        caches=tuple(_cache_shape(cache) for cache in state.caches),
    )


def _cache_shape(cache: CellCache) -> CacheShape:
    return CacheShape(
        key_type=cache.keys[0].kind,
        value_type=cache.values[0].kind,
        key_rows=tuple(tensor.row_bytes for tensor in cache.keys),
        value_rows=tuple(tensor.row_bytes for tensor in cache.values),
        rotations=cache.rotations,
    )


def layer_rows(cache: CellCache, start: int, stop: int) -> list[LayerRows]:
    """Return keys and values of the positions [start, stop), layer by layer.

    Raises `UsageError` unless the cache holds them all.
    """
    if not 0 <= start <= stop or (start < stop and not cache.first <= start < stop <= cache.stop):
        raise UsageError(f"the cache holds positions {cache.first} to {cache.stop - 1}, not {start} to {stop - 1}")
    cells = cache.order()[start - cache.first : stop - cache.first]
    contiguous = len(cells) and int(cells[-1]) - int(cells[0]) == len(cells) - 1 and bool((np.diff(cells) == 1).all())
    taken = slice(int(cells[0]), int(cells[-1]) + 1) if contiguous else cells
    pairs = zip(cache.keys, cache.values, strict=True)
    return [LayerRows(keys.rows(taken), values.rows(taken)) for keys, values in pairs]


def cut(file: SlotFile, tokens: int, window: int | None = None) -> SlotFile:
    """Return the slot file of the first `tokens` tokens alone.

    Of a model with sliding layers of `window` tokens it is possible at the end, at a checkpoint, and where the window
    before is held whole (`--swa-full`).  Raises `Incompatible` elsewhere: llama.cpp would answer wrongly from there.
    """
    state = file.state
    if not 0 < tokens <= state.tokens:
        raise UsageError(f"cannot keep {tokens} of {state.tokens} tokens")
    caches = [_cut_cache(state.caches[0], 0, tokens)]
    if state.slides:
        caches.append(_cut_sliding(file, tokens, window))
    checkpoints = file.checkpoints
    if checkpoints is not None:
        checkpoints = tuple(point for point in checkpoints if point.tokens <= tokens)
    return SlotFile(file.ids[:tokens], file.packed, replace(state, caches=tuple(caches)), checkpoints)


def _cut_sliding(file: SlotFile, tokens: int, window: int | None) -> CellCache:
    sliding = file.state.caches[1]
    if tokens == file.state.tokens:
        return sliding
    if window is None:
        raise UsageError("a state with sliding layers can be cut only by who knows their window")
    needed = max(0, tokens - (window - 1))
    held = [sliding, *(point.state.caches[0] for point in file.checkpoints or () if point.tokens == tokens)]
    for cache in held:
        if cache.first <= needed and tokens <= cache.stop:
            return _cut_cache(cache, cache.first, tokens)
    raise Incompatible(
        f"the state does not hold what its sliding layers need after {tokens} tokens",
        cause=f"they keep the last {window} tokens, and the positions from {sliding.first} on are here",
        hint="save it at that place, or run llama-server with --swa-full",
        field="tokens",
    )


def _cut_cache(cache: CellCache, start: int, stop: int) -> CellCache:
    """Return a cache of the positions [start, stop), its cells in their order."""
    order = cache.order()
    cells = order[(cache.positions[order] >= start) & (cache.positions[order] < stop)]
    return replace(
        cache,
        positions=cache.positions[cells],
        keys=tuple(tensor.select(cells) for tensor in cache.keys),
        values=tuple(tensor.select(cells) for tensor in cache.values),
    )


def build(
    shape: StateShape, ids: Sequence[int], caches: Sequence[Sequence[LayerRows]], window: int | None = None
) -> SlotFile:
    """Build the slot file of exactly these tokens, as the server of this shape would have saved it.

    `caches` has for each cache of the shape keys and values of its layers: all tokens of full layers, and of sliding
    ones the last, as many as there are.  With the `window` of the sliding layers, cells of zeros are put before them
    where llama-server wants more cells than a continuation can see: without them it takes the state, says so, and
    prefills everything again.  Raises `Incompatible` for rows of another length than the shape's.
    """
    if not ids or len(caches) != len(shape.caches):
        raise UsageError(f"{len(ids)} tokens and {len(caches)} caches for a shape of {len(shape.caches)}")
    built = []
    for index, (cache, rows) in enumerate(zip(shape.caches, caches, strict=True)):
        padded = _padded(rows, len(ids), window) if index and window is not None else rows
        built.append(_built(shape, cache, padded, len(ids), whole=index == 0))
    state = SequenceState(shape.version, tuple(built))
    return SlotFile(tuple(ids), shape.packed, state, () if shape.checkpoints else None)


def _padded(layers: Sequence[LayerRows], tokens: int, window: int) -> Sequence[LayerRows]:
    """Put cells that nothing sees before the last `window` - 1 tokens: llama-server asks for two more than it uses."""
    held = len(layers[0].keys) if layers else 0
    if held < min(tokens, window - 1):
        raise Incompatible(
            f"the sliding layers hold {held} of the {window - 1} tokens that are seen from the end", field="tokens"
        )
    missing = min(tokens, window + 1) - held
    if missing <= 0:
        return layers

    def padded(rows: Bytes) -> Bytes:
        return np.concatenate([np.zeros((missing, rows.shape[1]), np.uint8), rows])

    return [LayerRows(padded(layer.keys), padded(layer.values)) for layer in layers]


def _built(shape: StateShape, cache: CacheShape, layers: Sequence[LayerRows], tokens: int, *, whole: bool) -> CellCache:
    held = len(layers[0].keys) if layers else 0
    lengths = {len(rows) for layer in layers for rows in (layer.keys, layer.values)}
    if lengths != {held} or not 0 < held <= tokens or (whole and held != tokens):
        raise Incompatible(f"keys and values of {sorted(lengths)} tokens for a sequence of {tokens}", field="tokens")
    widths = [tuple(rows.shape[1] for rows in part) for part in zip(*((x.keys, x.values) for x in layers), strict=True)]
    if widths != [cache.key_rows, cache.value_rows]:
        raise Incompatible(
            "keys and values are not as long as this server's",
            cause="they are of another model, or of another --cache-type",
            field="layout",
        )
    return CellCache(
        streams=shape.streams,
        stream=shape.stream,
        sequence=shape.sequence,
        positions=np.arange(tokens - held, tokens, dtype=np.int32),
        transposed=shape.transposed,
        rotations=cache.rotations,
        keys=tuple(CellTensor.of_rows(cache.key_type, layer.keys, False) for layer in layers),
        values=tuple(CellTensor.of_rows(cache.value_type, layer.values, shape.transposed) for layer in layers),
    )


def refit(file: SlotFile, shape: StateShape) -> SlotFile:
    """Return the slot file as a server of another shape would have saved it: other version, slot or order of values.

    Raises `Incompatible` where formats or layers differ, which no rewriting can mend.
    """
    own = shape_of(file)
    for ours, theirs in zip(own.caches, shape.caches, strict=False):
        same = (ours.key_type, ours.value_type, ours.key_rows, ours.value_rows)
        if same != (theirs.key_type, theirs.value_type, theirs.key_rows, theirs.value_rows):
            raise Incompatible(
                f"a cache of {ours.key_type.name} and {ours.value_type.name} does not fit this server's",
                cause="another model, or another --cache-type-k or --cache-type-v",
                field="layout",
            )
        quantised = ours.key_type.quantised or ours.value_type.quantised
        if quantised and ours.rotations != theirs.rotations:
            raise Incompatible(
                "quantised keys and values are rotated otherwise by this server",
                cause="it is of another release of llama.cpp",
                field="rotations",
            )
    if len(own.caches) != len(shape.caches):
        raise Incompatible(f"a state of {len(own.caches)} caches does not fit a server of {len(shape.caches)}")
    rows = [layer_rows(cache, cache.first, cache.stop) for cache in file.state.caches]
    built = build(shape, file.ids, rows)
    points = tuple(_refit_point(point, shape) for point in file.checkpoints or ()) if shape.checkpoints else None
    return replace(built, checkpoints=points)


def _refit_point(point: SlidingCheckpoint, shape: StateShape) -> SlidingCheckpoint:
    cache = point.state.caches[0]
    layers = layer_rows(cache, cache.first, cache.stop)
    built = _built(shape, shape.caches[-1], layers, cache.stop, whole=False)
    return replace(point, state=SequenceState(shape.version, (built,), point.state.sequence))
