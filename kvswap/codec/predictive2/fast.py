"""The codec in C, where the module was built: one call a chunk, with the bits of `plain`."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive2 import plain
from kvswap.codec.predictive2.plan import BY_SUMS, SLICE_LOG, ChunkPlan, Constants, PlannedTensor
from kvswap.core.errors import IntegrityError

try:
    from kvswap.codec.predictive2 import _stream  # type: ignore[attr-defined]
except ImportError:  # no compiler was there when this was installed
    _stream = None

Array = npt.NDArray[Any]
AVAILABLE: bool = _stream is not None and sys.byteorder == "little"
LEVELS = ("portable", "avx2", "avx512")  # forms of the C code, each wider than the one before
LEVEL: int = _stream.level() if AVAILABLE else -1  # the one that is used
_TILE = 32  # channels that the kernels for sums work on at a time
_MOST_DIM, _MOST_CHANNELS, _MOST_INPUTS, _MOST_TENSORS, _MOST_TOKENS = 1024, 1 << 16, 17, 1024, (1 << 16) - 1
_NOTHING = np.empty(0, np.uint16)


def fits(plan: ChunkPlan) -> bool:
    """Return True if the C code is for chunks of this shape; any other is for `plain`."""
    dims = [step.words.shape[2] for step in plan.steps]
    small = plan.tokens <= _MOST_TOKENS and max(dims) <= _MOST_DIM and max(dims) * plan.heads <= _MOST_CHANNELS
    return (
        small
        and len(plan.steps) <= _MOST_TENSORS
        and all(step.words.strides[2] == step.words.itemsize for step in plan.steps)
    )


def encode(plan: ChunkPlan, entries: Array | None, level: int | None = None) -> bytes:
    """Encode a chunk as `plain.encode` does; `level` takes another form of the code than the best."""
    if not fits(plan):
        return plain.encode(plan, entries)
    named = _NOTHING if entries is None else np.ascontiguousarray(entries, np.uint16)
    wire: bytes = _stream.encode(*_given(plan, named), LEVEL if level is None else level)
    return wire


def decode(plan: ChunkPlan, wire: memoryview, level: int | None = None) -> None:
    """Decode a chunk as `plain.decode` does."""
    if not fits(plan):
        plain.decode(plan, wire)
        return
    named = np.zeros(plan.tokens, np.uint16) if plan.has_table else _NOTHING
    try:
        _stream.decode(*_given(plan, named), wire, LEVEL if level is None else level)
    except ValueError as error:
        raise IntegrityError(f"a predictive2 chunk is damaged: {error}") from None


def _given(plan: ChunkPlan, entries: Array) -> tuple[Any, ...]:
    """Return what the module takes, laid out as `_stream.c` reads it."""
    stack, tables = plan.stack, plan.tables
    missing = stack.missing if plan.has_table else (0, 0)
    shape = (plan.kind, plan.tokens, plan.heads, plan.cosine.shape[1], tables.bits, SLICE_LOG)
    numbers = [*shape, int(plan.has_table), *missing, len(plan.steps)]
    for step in plan.steps:
        inputs = [*step.inputs, *[0] * (_MOST_INPUTS - len(step.inputs))]
        sources = [] if step.sources is None else list(step.sources)
        token = [0] * 7 if step.sources is None else [*step.tensor.token.tolist(), *[0] * (7 - len(step.tensor.token))]
        factors = -1 if step.sources is None else len(sources)
        kind = (step.words.shape[2], int(step.rotated), int(step.given), step.mode, len(step.inputs), factors)
        numbers += [*kind, *inputs, *sources, *[0] * (3 - len(sources)), *token]
    arrays = tuple(_packed(plan, step) for step in plan.steps)
    words = tuple(step.words for step in plan.steps)
    table = stack.memory if plan.has_table else _NOTHING
    shared = (plan.cosine, plan.sine, tables.slots, tables.packed, tables.reciprocal, table, entries)
    return np.array(numbers, np.int32), arrays, words, shared


def _packed(plan: ChunkPlan, step: PlannedTensor) -> Array:
    """Return a tensor's numbers as one array of bytes, and keep it for the next chunk."""
    key = f"packed2 {plan.heads} {step.mode == BY_SUMS}"
    tensor = step.tensor
    if key not in tensor.prepared:
        c = Constants.of(tensor)
        pieces: list[Array] = [c.mean, c.scale, c.feature, c.inverse, tensor.log_sigma.astype(np.int32)]
        if step.mode == BY_SUMS:
            widths = [len(plan.steps[i].tensor.mean) for i in step.inputs]
            pieces += _packed_weights(tensor.weights, widths, plan.heads)
        tensor.prepared[key] = np.concatenate([np.ascontiguousarray(p).reshape(-1).view(np.uint8) for p in pieces])
    out: Array = tensor.prepared[key]
    return out


def _packed_weights(weights: Array, widths: list[int], heads: int) -> list[Array]:
    """Return corrections, [head][channel], and weights, [head][tile][four features][32 channels][4].

    Features come by inputs, each filled up to a multiple of four, the channels of a head to one of 32.
    """
    dim = weights.shape[1] // heads
    wide = -(-dim // _TILE) * _TILE
    rows = sum(-(-width // 4) * 4 for width in widths)
    whole = np.zeros((rows, heads, wide), np.int8)
    given = weights.reshape(len(weights), heads, dim)
    at = to = 0
    for width in widths:
        whole[to : to + width, :, :dim] = given[at : at + width]
        at, to = at + width, to - (-width // 4) * 4
    correction = -128 * whole.sum(axis=0, dtype=np.int32)
    tiled = whole.reshape(rows // 4, 4, heads, wide // _TILE, _TILE).transpose(2, 3, 0, 4, 1)
    return [correction.astype(np.int32), np.ascontiguousarray(tiled)]
