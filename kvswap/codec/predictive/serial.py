"""The predictor as bytes: one msgpack map of little-endian arrays.  They come from untrusted peers, so all is checked.

    version  1, for the codec `predictive`, or 2, for `predictive2`
    stacks   [{layers, before, turns: int32 [pairs, 24, 2], k: [tensor], v: [tensor],
               memory: int16 [entries, channels of K and V], missing: [K, V]}]
    tables   uint16 [96, 128]; version 2: [80, 64]
    bits     version 2 alone: log2 of what a row of the tables adds up to, 10 to 12

    tensor   {unit, mean: int32, factor: int32, weights: int8 [features, channels], scale: int32,
              log_sigma: int16, inverse: int32, token: int16}

`weights` are one zstd frame that declares its size, `memory` is one of the low bytes and then the high bytes of its
numbers.  All frames of a predictor together hold no more than `predictor_raw_bytes`.

Version 2 has narrower bounds, which keep its arithmetic in float32 away from what overflows or vanishes.

A hostile predictor can make chunks large or slow to the bounds below, never wrong: what is decoded is compared with the
digests that its publisher signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard
from msgspec import Meta

from kvswap.codec.predictive import rope
from kvswap.codec.predictive.buckets import CONTEXTS
from kvswap.codec.predictive.predictor import FAR, Predictor, Stack, Tensor
from kvswap.codec.predictive.rans import SYMBOLS, FrequencyTables
from kvswap.codec.predictive2 import frames
from kvswap.codec.predictive2.tables import StreamTables
from kvswap.core import wire
from kvswap.core.errors import IntegrityError, KvswapError
from kvswap.core.limits import LIMITS

Array = npt.NDArray[Any]

MOST_FEATURES = 16_384  # the sum of that many products of 127 * 127 is an eighth of int32's range
_MOST_LOG_SIGMA = 400
LARGEST_PAIR = 128  # of version 2, two weights together: products with a byte stay within int16, where AVX2 adds them
MOST_LOG_SIGMA = 200  # of version 2
MOST_MISSING = 64  # of version 2
_ONE = 1 << 30  # of rotations
_LEVEL = 19  # of zstd
_LAYERS = Meta(min_length=1, max_length=LIMITS.manifest_layers)
_KINDS = {
    "mean": "<i4",
    "factor": "<i4",
    "weights": "<i1",
    "scale": "<i4",
    "log_sigma": "<i2",
    "inverse": "<i4",
    "token": "<i2",
}


def dump(predictor: Predictor) -> bytes:
    """Serialise a predictor; equal predictors have equal bytes, of version 2 where it is for `predictive2`."""
    stacks = [
        {
            "layers": list(stack.layers),
            "before": stack.before,
            "turns": stack.rotations.astype("<i4").tobytes(),
            "k": [_plain(t) for t in stack.k],
            "v": [_plain(t) for t in stack.v],
            "memory": _pressed(stack.memory.astype("<i2").view(np.uint8).reshape(-1, 2).T),
            "missing": list(stack.missing),
        }
        for stack in predictor.stacks
    ]
    tables = predictor.tables
    fields = {"version": 1, "stacks": stacks, "tables": tables.frequency.astype("<u2").tobytes()}
    return wire.pack(fields | ({"version": 2, "bits": tables.bits} if isinstance(tables, StreamTables) else {}))


def _plain(tensor: Tensor) -> dict[str, Any]:
    arrays = {name: getattr(tensor, name).astype(kind).tobytes() for name, kind in _KINDS.items()}
    return {"unit": tensor.unit, **arrays, "weights": _pressed(tensor.weights)}


def _pressed(array: Array) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(array).tobytes())


class _ByteQuota:
    """The bytes that the frames of a predictor may still hold."""

    def __init__(self) -> None:
        self._left = LIMITS.predictor_raw_bytes

    def take(self, frame: bytes) -> bytes:
        # zstandard ignores max_output_size when a frame declares its size.
        size = zstandard.get_frame_parameters(frame).content_size
        _require(0 <= size <= self._left, "holds more than its cap, or does not say how much")
        self._left -= size
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1), allow_extra_data=False)
        _require(len(data) == size, "has a frame of another size than it declares")
        return data


class _TensorFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    unit: Annotated[int, Meta(ge=0, le=24)]
    mean: bytes
    factor: bytes
    weights: bytes
    scale: bytes
    log_sigma: bytes
    inverse: bytes
    token: bytes


class _StackFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    layers: Annotated[list[Annotated[int, Meta(ge=0, lt=LIMITS.manifest_layers)]], _LAYERS]
    before: Annotated[int, Meta(ge=1, le=8)]
    turns: bytes
    k: Annotated[list[_TensorFields], _LAYERS]
    v: Annotated[list[_TensorFields], _LAYERS]
    memory: bytes
    missing: Annotated[
        list[Annotated[int, Meta(ge=-_MOST_LOG_SIGMA, le=_MOST_LOG_SIGMA)]], Meta(min_length=2, max_length=2)
    ]


class _Fields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    stacks: Annotated[list[_StackFields], _LAYERS]
    tables: bytes
    bits: int | None = None


def load(data: bytes | memoryview) -> Predictor:
    """Parse a predictor and check every number of it.  Raises `IntegrityError` naming what is wrong."""
    _require(len(data) <= LIMITS.predictor_bytes, f"of {len(data)} bytes is over the cap")
    try:
        fields = wire.unpack(bytes(data), _Fields, IntegrityError, items=LIMITS.predictor_items)
        _require(fields.version in (1, 2), "has an unknown version")
        _require((fields.bits is None) == (fields.version == 1), "has bits without tables of them, or none")
        tables: FrequencyTables | StreamTables
        if fields.bits is None:
            tables = FrequencyTables(_array(fields.tables, "<u2", CONTEXTS, SYMBOLS))
        else:
            tables = StreamTables(_array(fields.tables, "<u2", frames.CONTEXTS, frames.SYMBOLS), fields.bits)
        quota = _ByteQuota()
        stacks = tuple(_stack(s, quota) for s in fields.stacks)
        if fields.version == 2:
            for stack in stacks:
                _check_narrow(stack)
    except IntegrityError:
        raise
    except (KvswapError, TypeError, ValueError, zstandard.ZstdError) as error:
        raise IntegrityError(f"a predictor is malformed: {error}") from error
    layers = [layer for stack in stacks for layer in stack.layers]
    _require(len(set(layers)) == len(layers), "names a layer twice")
    return Predictor(stacks, tables)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise IntegrityError(f"a predictor {what}")


def _array(data: bytes, kind: str, *shape: int) -> Array:
    """Copy an array to native order; -1 stands for the dimension that follows from the length."""
    flat = np.frombuffer(data, kind)
    return np.ascontiguousarray(flat.reshape(shape), flat.dtype.newbyteorder("="))


def _stack(value: _StackFields, quota: _ByteQuota) -> Stack:
    layers = tuple(value.layers)
    _require(value.layers == sorted(layers), "has its layers out of order")
    rotations = _array(value.turns, "<i4", -1, rope.BITS, 2)
    _require(bool((np.abs(rotations.astype(np.int64)) <= 1 << 30).all()), "turns by more than one")
    _require(len(value.k) == len(value.v) == len(layers), "has not one pair of tensors a layer")
    pairs = [(_tensor(k, quota), _tensor(v, quota)) for k, v in zip(value.k, value.v, strict=True)]
    halves = np.frombuffer(quota.take(value.memory), np.uint8).reshape(2, -1)
    width = sum(len(t.mean) for t in pairs[0])
    memory = np.ascontiguousarray(halves.T).view("<i2").reshape(-1, width).astype(np.int16)
    _require(len(memory) < 1 << 16, "too many tokens in the token table")
    _check_widths(pairs, value.before, len(memory) > 0)
    missing = (value.missing[0], value.missing[1])
    keys, values = tuple(k for k, _ in pairs), tuple(v for _, v in pairs)
    return Stack(layers, value.before, rotations, keys, values, memory, missing)


def _check_narrow(stack: Stack) -> None:
    """Check the bounds of version 2."""
    turns = stack.rotations.astype(np.int64)
    _require(bool((np.square(turns).sum(axis=-1) <= (_ONE + 1) ** 2).all()), "has rotations that stretch")
    _require(max(abs(m) for m in stack.missing) <= MOST_MISSING, "has a sigma out of range")
    for tensor in (*stack.k, *stack.v):
        _require(bool((np.abs(tensor.log_sigma) <= MOST_LOG_SIGMA).all()), "has a sigma out of range")
        at = 0
        for width in input_widths(stack, tensor):
            pairs = paired(tensor.weights[at : at + width])
            _require(bool((pairs.sum(axis=1) <= LARGEST_PAIR).all()), "has two weights over 128 together")
            at += width


def input_widths(stack: Stack, tensor: Tensor) -> list[int]:
    """List the channels of a tensor's inputs in the order of its weights."""
    widths = [len(stack.k[0].mean), len(stack.v[0].mean)]  # the layers of a stack are alike
    each = [widths[i % 2] for i in range(2 * stack.before + 1)]
    ends = list(accumulate(each, initial=0))
    return each[: ends.index(len(tensor.weights))]


def paired(weights: Array) -> Array:
    """Return the sizes of one input's weights by pairs of neighbouring features, int16 [pairs, 2, channels]."""
    sizes = np.abs(weights.astype(np.int16))
    if len(sizes) % 2:
        sizes = np.concatenate([sizes, np.zeros_like(sizes[:1])])
    return sizes.reshape(len(sizes) // 2, 2, -1)


def _check_widths(pairs: Sequence[tuple[Tensor, Tensor]], before: int, token_table: bool) -> None:
    for place, (k, v) in enumerate(pairs):
        recent = pairs[max(0, place - before) : place]
        given = sum(len(t.mean) for pair in recent for t in pair)
        more = 0 if token_table and not place else len(k.mean)
        _require(len(k.weights) == given and len(v.weights) == given + more, "has weights of another shape")


def _tensor(value: _TensorFields, quota: _ByteQuota) -> Tensor:
    mean = _array(value.mean, _KINDS["mean"], -1)
    channels = len(mean)
    _require(0 < channels <= 1 << 16, "has a tensor without channels, or with too many")
    rows = {n: _array(getattr(value, n), _KINDS[n], channels) for n in ("factor", "scale", "log_sigma", "inverse")}
    weights = _array(quota.take(value.weights), _KINDS["weights"], -1, channels)
    token = _array(value.token, _KINDS["token"], -1)
    _require(len(weights) <= MOST_FEATURES and bool((weights >= -127).all()), "has sums that are too large")
    _require(bool((np.abs(mean.astype(np.int64)) <= FAR).all()), "has a mean out of range")
    _require(all(bool((rows[n] >= 0).all()) for n in ("factor", "scale", "inverse")), "has a negative scale")
    _require(bool((np.abs(rows["log_sigma"].astype(np.int64)) <= _MOST_LOG_SIGMA).all()), "has a sigma out of range")
    _require(len(token) in (1, 3, 5, 7), "has token weights of another shape")
    return Tensor(value.unit, mean, rows["factor"], weights, rows["scale"], rows["log_sigma"], rows["inverse"], token)
