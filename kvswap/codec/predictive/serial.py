"""A predictor as bytes: one msgpack map of little-endian arrays.  Read from anybody, so every number is checked.

    version  1
    stacks   [{layers, before, turns: int32 [pairs, 24, 2], k: [tensor], v: [tensor],
               memory: int16 [entries, channels of K and V], missing: [K, V]}]
    tables   uint16 [96, 128]

    tensor   {unit, mean: int32, factor: int32, weights: int8 [features, channels], scale: int32,
              log_sigma: int16, inverse: int32, token: int16}

`weights` are one zstd frame that declares its size, `memory` is one of the low bytes and then the high
bytes of its numbers.  All frames of a predictor together hold no more than `predictor_raw_bytes`.

A hostile predictor can make chunks large or slow to the bounds below, never wrong: what is decoded is
compared with the digests its publisher signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from kvswap.codec.predictive import rope
from kvswap.codec.predictive.buckets import CONTEXTS
from kvswap.codec.predictive.predictor import FAR, Predictor, Stack, Tensor
from kvswap.codec.predictive.rans import SYMBOLS, Tables
from kvswap.core import wire
from kvswap.core.errors import IntegrityError, KvswapError
from kvswap.core.limits import LIMITS

Array = npt.NDArray[Any]

VERSION = 1
MOST_FEATURES = 16_384  # so many products of 127 * 127 fit int32 eight times
_MOST_LOG_SIGMA = 400
_LEVEL = 19  # of zstd
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
    """The bytes; equal predictors have equal bytes."""
    stacks = [
        {
            "layers": list(stack.layers),
            "before": stack.before,
            "turns": stack.turns.astype("<i4").tobytes(),
            "k": [_plain(t) for t in stack.k],
            "v": [_plain(t) for t in stack.v],
            "memory": _pressed(stack.memory.astype("<i2").view(np.uint8).reshape(-1, 2).T),
            "missing": list(stack.missing),
        }
        for stack in predictor.stacks
    ]
    return wire.pack(
        {"version": VERSION, "stacks": stacks, "tables": predictor.tables.frequency.astype("<u2").tobytes()}
    )


def _plain(tensor: Tensor) -> dict[str, Any]:
    arrays = {name: getattr(tensor, name).astype(kind).tobytes() for name, kind in _KINDS.items()}
    return {"unit": tensor.unit, **arrays, "weights": _pressed(tensor.weights)}


def _pressed(array: Array) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL).compress(np.ascontiguousarray(array).tobytes())


class _Room:
    """How much more the frames of a predictor may hold."""

    def __init__(self) -> None:
        self._left = LIMITS.predictor_raw_bytes

    def take(self, frame: Any) -> bytes:
        _require(isinstance(frame, bytes), "holds something else than bytes")
        # zstandard does not hold a frame to max_output_size when it declares its size.
        size = zstandard.get_frame_parameters(frame).content_size
        _require(0 <= size <= self._left, "holds more than its cap, or does not say how much")
        self._left -= size
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=max(size, 1), allow_extra_data=False)
        _require(len(data) == size, "has a frame of another size than it declares")
        return data


def load(data: bytes | memoryview) -> Predictor:
    """Raises `IntegrityError` naming what is wrong."""
    _require(len(data) <= LIMITS.predictor_bytes, f"of {len(data)} bytes is over the cap")
    try:
        value = wire.parse(bytes(data))
        _require(isinstance(value, dict) and set(value) == {"version", "stacks", "tables"}, "is no map of its fields")
        _require(value["version"] == VERSION, "has an unknown version")
        tables = Tables(_array(value["tables"], "<u2", CONTEXTS, SYMBOLS))
        room = _Room()
        stacks = tuple(_stack(s, room) for s in _list(value["stacks"], LIMITS.manifest_layers))
    except IntegrityError:
        raise
    except (KvswapError, KeyError, TypeError, ValueError, AttributeError, zstandard.ZstdError) as error:
        raise IntegrityError(f"a predictor is malformed: {error}") from error
    layers = [layer for stack in stacks for layer in stack.layers]
    _require(len(set(layers)) == len(layers), "names a layer twice")
    return Predictor(stacks, tables)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise IntegrityError(f"a predictor {what}")


def _list(value: Any, most: int) -> list[Any]:
    _require(isinstance(value, list) and 0 < len(value) <= most, "has no layers, or too many")
    return list(value)


def _array(data: Any, kind: str, *shape: int) -> Array:
    """A copy in native order; -1 stands for what the length says."""
    _require(isinstance(data, bytes), "holds something else than bytes")
    flat = np.frombuffer(data, kind)
    return np.ascontiguousarray(flat.reshape(shape), flat.dtype.newbyteorder("="))


def _stack(value: Any, room: _Room) -> Stack:
    layers = tuple(_list(value["layers"], LIMITS.manifest_layers))
    _require(all(isinstance(i, int) and 0 <= i < LIMITS.manifest_layers for i in layers), "names no layer")
    _require(list(layers) == sorted(layers), "has its layers out of order")
    before = value["before"]
    _require(isinstance(before, int) and 1 <= before <= 8, "looks back too far")
    turns = _array(value["turns"], "<i4", -1, rope.BITS, 2)
    _require(bool((np.abs(turns.astype(np.int64)) <= 1 << 30).all()), "turns by more than one")
    pairs = [(_tensor(k, room), _tensor(v, room)) for k, v in zip(value["k"], value["v"], strict=True)]
    _require(len(pairs) == len(layers), "has not one pair of tensors a layer")
    halves = np.frombuffer(room.take(value["memory"]), np.uint8).reshape(2, -1)
    width = sum(len(t.mean) for t in pairs[0])
    memory = np.ascontiguousarray(halves.T).view("<i2").reshape(-1, width).astype(np.int16)
    _require(len(memory) < 1 << 16, "knows too many tokens by heart")
    missing = tuple(_list(value["missing"], 2))
    _require(
        len(missing) == 2 and all(isinstance(m, int) and abs(m) <= _MOST_LOG_SIGMA for m in missing), "has no sigma"
    )
    _check_widths(pairs, before, len(memory) > 0)
    return Stack(layers, before, turns, tuple(k for k, _ in pairs), tuple(v for _, v in pairs), memory, missing)


def _check_widths(pairs: Sequence[tuple[Tensor, Tensor]], before: int, by_heart: bool) -> None:
    for place, (k, v) in enumerate(pairs):
        recent = pairs[max(0, place - before) : place]
        given = sum(len(t.mean) for pair in recent for t in pair)
        more = 0 if by_heart and not place else len(k.mean)
        _require(len(k.weights) == given and len(v.weights) == given + more, "has weights of another shape")


def _tensor(value: Any, room: _Room) -> Tensor:
    _require(isinstance(value, dict) and set(value) == {"unit", *_KINDS}, "has a tensor without its fields")
    unit = value["unit"]
    _require(isinstance(unit, int) and 0 <= unit <= 24, "has a unit out of range")
    mean = _array(value["mean"], _KINDS["mean"], -1)
    channels = len(mean)
    _require(0 < channels <= 1 << 16, "has a tensor without channels, or with too many")
    rows = {n: _array(value[n], _KINDS[n], channels) for n in ("factor", "scale", "log_sigma", "inverse")}
    weights = _array(room.take(value["weights"]), _KINDS["weights"], -1, channels)
    token = _array(value["token"], _KINDS["token"], -1)
    _require(len(weights) <= MOST_FEATURES and bool((weights >= -127).all()), "has sums that are too large")
    _require(bool((np.abs(mean.astype(np.int64)) <= FAR).all()), "has a mean out of range")
    _require(all(bool((rows[n] >= 0).all()) for n in ("factor", "scale", "inverse")), "has a negative scale")
    _require(bool((np.abs(rows["log_sigma"].astype(np.int64)) <= _MOST_LOG_SIGMA).all()), "has a sigma out of range")
    _require(len(token) in (1, 3, 5, 7), "has token weights of another shape")
    return Tensor(unit, mean, rows["factor"], weights, rows["scale"], rows["log_sigma"], rows["inverse"], token)
