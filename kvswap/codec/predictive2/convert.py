"""A predictor of `predictive` as one of `predictive2`: the same weights, and tables of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.parts import Part
from kvswap.codec.predictive import Context, Predictor, Stack, memory
from kvswap.codec.predictive import codec as first
from kvswap.codec.predictive.buckets import FORMATS
from kvswap.codec.predictive.predictor import Tensor
from kvswap.codec.predictive.serial import LARGEST_PAIR, MOST_LOG_SIGMA, MOST_MISSING, input_widths, paired
from kvswap.codec.predictive2 import plain
from kvswap.codec.predictive2.frames import CONTEXTS, SYMBOLS
from kvswap.codec.predictive2.plan import plan_of
from kvswap.codec.predictive2.tables import BITS, StreamTables

Array = npt.NDArray[Any]


def converted(predictor: Predictor, samples: Iterable[tuple[int, int, list[Part]]], dtype: str) -> Predictor:
    """Return the predictor for `predictive2`.

    `samples` are what its tables are counted on: (stack, first position, K and V of all layers of that stack).  Weights
    change only where two neighbours are over the format's bound, a few in a million.
    """
    stacks = tuple(_bounded(stack) for stack in predictor.stacks)
    counts = np.zeros((CONTEXTS, SYMBOLS))
    for number, start, parts in samples:
        counts += count(Predictor(stacks, StreamTables.flat()), number, start, parts, dtype)
    return Predictor(stacks, StreamTables.of_counts(counts, BITS))


def count(predictor: Predictor, stack: int, start: int, parts: list[Part], dtype: str) -> Array:
    """Count the symbols of all layers of a stack by context, [80, 64]."""
    where = Context(predictor, predictor.stacks[stack], 0, [], start)
    plan = plan_of(where, [], parts, FORMATS[dtype])
    entries = memory.find(plan.stack, first.flat(parts[1]), plan.form, first.BEST) if plan.has_table else None
    counts = np.zeros(CONTEXTS * SYMBOLS)
    for value, context in plain.split_all(plan, entries):
        counts += np.bincount((context * SYMBOLS + value.symbol).reshape(-1), minlength=len(counts))
    return counts.reshape(CONTEXTS, SYMBOLS)


def _bounded(stack: Stack) -> Stack:
    """Return a stack within the bounds of version 2."""
    missing = (min(max(stack.missing[0], -MOST_MISSING), MOST_MISSING), min(stack.missing[1], MOST_MISSING))
    keys, values = (tuple(_tensor(stack, t) for t in several) for several in (stack.k, stack.v))
    return replace(stack, k=keys, v=values, missing=missing, prepared={})


def _tensor(stack: Stack, tensor: Tensor) -> Tensor:
    weights = tensor.weights.astype(np.int16)
    at = 0
    for width in input_widths(stack, tensor):
        rows = weights[at : at + width]
        pairs = paired(rows)
        over = np.maximum(pairs.sum(axis=1) - LARGEST_PAIR, 0)
        larger = pairs.argmax(axis=1)[:, None, :] == np.arange(2)[None, :, None]
        less = (pairs - over[:, None, :] * larger).reshape(-1, rows.shape[1])[:width]
        rows[...] = np.sign(rows) * less
        at += width
    sigma = np.clip(tensor.log_sigma, -MOST_LOG_SIGMA, MOST_LOG_SIGMA)
    return replace(tensor, weights=weights.astype(np.int8), log_sigma=sigma, prepared={})
