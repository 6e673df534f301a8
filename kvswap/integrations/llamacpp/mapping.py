"""Between llama.cpp's states and kvswap's artifacts: which tensor of a state is which of a layout, and in what order.

An artifact has the layers in the model's order, each with `k` and `v` as [head, token, dim].  Where the model's keys
turn by neighbours (channels 2i and 2i+1) and it is known that transformers has them by halves (i and i + dim/2), they
are stored by halves: so predictors are of use, and another engine can be.  q8_0 is stored as it is, blocks of 34 bytes
of 32 numbers each, with what it was rotated by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvswap.artifact.specs import KEY, VALUE, LayerSpec, TensorSpec
from kvswap.codec import Part
from kvswap.core.errors import Incompatible
from kvswap.integrations.llamacpp.building import CacheShape, LayerRows, StateShape, build, layer_rows
from kvswap.integrations.llamacpp.ggml import BF16, F16, Q8_0, GgmlType
from kvswap.integrations.llamacpp.gguf import GgufFile
from kvswap.integrations.llamacpp.state import Bytes, SlotFile

DTYPES = {F16: "float16", BF16: "bfloat16", Q8_0: "q8_0"}
"""The dtypes of layouts, by the formats of llama.cpp's caches."""

BY_NEIGHBOURS = frozenset({"llama"})
"""Architectures whose keys turn by neighbours in a GGUF file and by halves in transformers (tested)."""

PATTERNS = {"gemma3": 6}
"""Architectures with sliding layers: of so many layers the last one is full (tested)."""


@dataclass(frozen=True, slots=True)
class GgufLayout:
    """The layout, as an artifact, of the cache that one server keeps of one GGUF model.

    `places` has for each layer of the model its cache in a state and its place there; `halves` says that keys are
    stored by halves; `rope` is the layout's text, which has to be the same for publisher and reader.
    """

    dtype: str
    layers: tuple[LayerSpec, ...]
    places: tuple[tuple[int, int], ...]
    halves: bool
    rope: str

    @property
    def window(self) -> int | None:
        """The window of the sliding layers, None without any."""
        return next((layer.window for layer in self.layers if layer.window is not None), None)


def layout_for(file: GgufFile, shape: StateShape) -> GgufLayout:
    """Return how states of this shape, of this model, are laid out.

    Raises `Incompatible` naming what does not fit, or is not known of the architecture.
    """
    sliding = _sliding(file, shape)
    heads = file.numbers("attention.head_count_kv", len(sliding), file.number("attention.head_count"))
    counts = [0, 0]
    places, layers = [], []
    window = file.number("attention.sliding_window") if shape.slides else None
    first = shape.caches[0]
    dtype = DTYPES[first.key_type]
    for index, slides in enumerate(sliding):
        cache = int(slides)
        place, counts[cache] = counts[cache], counts[cache] + 1
        places.append((cache, place))
        one = shape.caches[cache]
        tensors = (
            _tensor(KEY, one.key_type, one.key_rows[place], heads[index], dtype),
            _tensor(VALUE, one.value_type, one.value_rows[place], heads[index], dtype),
        )
        layers.append(LayerSpec("sliding" if slides else "full", tensors, window if slides else None))
    quantised = first.key_type.quantised or first.value_type.quantised
    halves = not first.key_type.quantised and _by_neighbours(file, first, heads[0])
    text = {"engine": "llama.cpp", "keys": "halves" if halves else "stored"}
    if quantised:
        text["rotations"] = json.dumps([cache.rotations for cache in shape.caches])
    return GgufLayout(dtype, tuple(layers), tuple(places), halves, json.dumps(text, sort_keys=True))


def _sliding(file: GgufFile, shape: StateShape) -> list[bool]:
    """Return for each layer whether it slides."""
    count = file.number("block_count")
    held = sum(len(cache.key_rows) for cache in shape.caches)
    if held != count:
        raise _unknown(file, f"a cache of {held} layers, and the model has {count}")
    if not shape.slides:
        return [False] * count
    if (default := PATTERNS.get(file.architecture)) is None:
        raise _unknown(file, "sliding layers, and which ones slide is not known")
    pattern = file.number("attention.sliding_window_pattern", default)
    sliding = [pattern > 0 and (index + 1) % pattern != 0 for index in range(count)]
    if sum(sliding) != len(shape.caches[1].key_rows):
        raise _unknown(file, f"{len(shape.caches[1].key_rows)} sliding layers where {sum(sliding)} were expected")
    return sliding


def _unknown(file: GgufFile, what: str) -> Incompatible:
    return Incompatible(
        f"a model of architecture {file.architecture[:40]!r} has {what}",
        cause="kvswap was not tried with this kind of model",
        hint="docs/llamacpp.md has the models that can be shared",
        field="architecture",
    )


def _tensor(name: str, kind: GgmlType, row: int, heads: int, dtype: str) -> TensorSpec:
    numbers = row // kind.block_bytes * kind.block_numbers
    if not heads or numbers % heads or numbers // heads % kind.block_numbers:
        raise Incompatible(
            f"{numbers} numbers a token do not make {heads} heads of {kind.name}",
            cause="heads that share a quantised block, or metadata of another model",
            field="layout",
        )
    own = DTYPES[kind]
    return TensorSpec(
        name, "token", (heads, row // heads // (1 if kind.quantised else kind.block_bytes)), _named(own, dtype)
    )


def _named(own: str, dtype: str) -> str | None:
    return own if own != dtype else None


def _by_neighbours(file: GgufFile, cache: CacheShape, heads: int) -> bool:
    dim = cache.key_rows[0] // cache.key_type.block_bytes // heads
    turned = file.number("rope.dimension_count", dim)
    return file.architecture in BY_NEIGHBOURS and turned == dim and dim % 2 == 0


def parts_of(layout: GgufLayout, layer: int, rows: LayerRows) -> tuple[Part, Part]:
    """Return keys and values of a layer of the model as parts of chunks, [head, token, dim] each."""
    spec = layout.layers[layer]
    keys, values = (
        _heads(layout, tensor, part) for tensor, part in zip(spec.tensors, (rows.keys, rows.values), strict=True)
    )
    if layout.halves:
        pairs = keys.reshape(*keys.shape[:-1], -1, 2)
        keys = np.ascontiguousarray(pairs.swapaxes(-1, -2)).reshape(keys.shape)
    return keys, values


def rows_of(layout: GgufLayout, parts: tuple[Part, Part]) -> LayerRows:
    """Return keys and values of a layer as rows of a state: the reverse of `parts_of`."""
    keys, values = parts
    if layout.halves:
        halves = keys.reshape(*keys.shape[:-1], 2, -1)
        keys = halves.swapaxes(-1, -2).reshape(keys.shape)
    return LayerRows(_rows(keys), _rows(values))


def _heads(layout: GgufLayout, tensor: TensorSpec, rows: Bytes) -> Part:
    heads, dim = tensor.shape
    words = np.ascontiguousarray(rows)
    part: Part = words if (tensor.dtype or layout.dtype) == Q8_0.name else words.view("<u2")
    return part.reshape(len(rows), heads, dim).swapaxes(0, 1)


def _rows(part: Part) -> Bytes:
    rows = np.ascontiguousarray(part.swapaxes(0, 1))
    return rows.reshape(len(rows), -1).view(np.uint8)


def model_rows(layout: GgufLayout, file: SlotFile, start: int, stop: int) -> list[LayerRows]:
    """Return keys and values of positions [start, stop) of a state, in the order of the model's layers.

    Raises `UsageError` unless all layers hold them.
    """
    caches = [layer_rows(cache, start, stop) for cache in file.state.caches]
    return [caches[cache][place] for cache, place in layout.places]


def slot_file_of(layout: GgufLayout, shape: StateShape, ids: Sequence[int], rows: Sequence[LayerRows]) -> SlotFile:
    """Build the slot file of exactly these tokens from keys and values in the order of the model's layers.

    Sliding layers have those of the last `window` - 1 tokens at least.  Raises `Incompatible` where they do not fit.
    """
    caches: list[list[LayerRows]] = [[] for _ in shape.caches]
    for (cache, _place), one in zip(layout.places, rows, strict=True):
        caches[cache].append(one)
    return build(shape, ids, caches, layout.window)
