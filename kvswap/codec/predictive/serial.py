"""A predictor as bytes: one msgpack map of little-endian arrays.  Read from anybody, so every number is checked.

    version  1
    stacks   [{layers, before, turns: int32 [pairs, 24, 2], k: [tensor], v: [tensor]}]
    tables   uint16 [96, 128]

    tensor   {unit, mean: int32, factor: int32, weights: int8 [features, channels], scale: int32,
              log_sigma: int16, inverse: int32, token: int16}

A hostile predictor can make chunks large or slow to the bounds below, never wrong: what is decoded is
compared with the digests its publisher signed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive import rope
from kvswap.codec.predictive.buckets import CONTEXTS
from kvswap.codec.predictive.predictor import FAR, Predictor, Stack, Tensor
from kvswap.codec.predictive.rans import SYMBOLS, Tables
from kvswap.core import wire
from kvswap.core.errors import IntegrityError, KvswapError
from kvswap.core.limits import LIMITS

Array = npt.NDArray[Any]

VERSION = 1
MOST_FEATURES = 1_040  # 1,040 * 127 * 127 < 2^24
_MOST_LOG_SIGMA = 400
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
        }
        for stack in predictor.stacks
    ]
    return wire.pack(
        {"version": VERSION, "stacks": stacks, "tables": predictor.tables.frequency.astype("<u2").tobytes()}
    )


def _plain(tensor: Tensor) -> dict[str, Any]:
    arrays = {name: getattr(tensor, name).astype(kind).tobytes() for name, kind in _KINDS.items()}
    return {"unit": tensor.unit, **arrays}


def load(data: bytes | memoryview) -> Predictor:
    """Raises `IntegrityError` naming what is wrong."""
    _require(len(data) <= LIMITS.predictor_bytes, f"of {len(data)} bytes is over the cap")
    try:
        value = wire.parse(bytes(data))
        _require(isinstance(value, dict) and set(value) == {"version", "stacks", "tables"}, "is no map of its fields")
        _require(value["version"] == VERSION, "has an unknown version")
        tables = Tables(_array(value["tables"], "<u2", CONTEXTS, SYMBOLS))
        stacks = tuple(_stack(s) for s in _list(value["stacks"], LIMITS.manifest_layers))
    except IntegrityError:
        raise
    except (KvswapError, KeyError, TypeError, ValueError, AttributeError) as error:
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


def _stack(value: Any) -> Stack:
    layers = tuple(_list(value["layers"], LIMITS.manifest_layers))
    _require(all(isinstance(i, int) and 0 <= i < LIMITS.manifest_layers for i in layers), "names no layer")
    _require(list(layers) == sorted(layers), "has its layers out of order")
    before = value["before"]
    _require(isinstance(before, int) and 1 <= before <= 8, "looks back too far")
    turns = _array(value["turns"], "<i4", -1, rope.BITS, 2)
    _require(bool((np.abs(turns.astype(np.int64)) <= 1 << 30).all()), "turns by more than one")
    pairs = [(_tensor(k), _tensor(v)) for k, v in zip(value["k"], value["v"], strict=True)]
    _require(len(pairs) == len(layers), "has not one pair of tensors a layer")
    _check_widths(pairs, before)
    return Stack(layers, before, turns, tuple(k for k, _ in pairs), tuple(v for _, v in pairs))


def _check_widths(pairs: Sequence[tuple[Tensor, Tensor]], before: int) -> None:
    for place, (k, v) in enumerate(pairs):
        recent = pairs[max(0, place - before) : place]
        given = sum(len(t.mean) for pair in recent for t in pair)
        _require(len(k.weights) == given and len(v.weights) == given + len(k.mean), "has weights of another shape")


def _tensor(value: Any) -> Tensor:
    _require(isinstance(value, dict) and set(value) == {"unit", *_KINDS}, "has a tensor without its fields")
    unit = value["unit"]
    _require(isinstance(unit, int) and 0 <= unit <= 24, "has a unit out of range")
    mean = _array(value["mean"], _KINDS["mean"], -1)
    channels = len(mean)
    _require(0 < channels <= 1 << 16, "has a tensor without channels, or with too many")
    rows = {n: _array(value[n], _KINDS[n], channels) for n in ("factor", "scale", "log_sigma", "inverse")}
    weights = _array(value["weights"], _KINDS["weights"], -1, channels)
    token = _array(value["token"], _KINDS["token"], -1)
    _require(len(weights) <= MOST_FEATURES and bool((weights >= -127).all()), "has sums that float32 cannot hold")
    _require(bool((np.abs(mean.astype(np.int64)) <= FAR).all()), "has a mean out of range")
    _require(all(bool((rows[n] >= 0).all()) for n in ("factor", "scale", "inverse")), "has a negative scale")
    _require(bool((np.abs(rows["log_sigma"].astype(np.int64)) <= _MOST_LOG_SIGMA).all()), "has a sigma out of range")
    _require(len(token) in (1, 3, 5, 7), "has token weights of another shape")
    return Tensor(unit, mean, rows["factor"], weights, rows["scale"], rows["log_sigma"], rows["inverse"], token)
