"""Predictors that nobody trained, for tests and vectors of the codec `predictive2`."""

from __future__ import annotations

import numpy as np

from kvswap.codec.predictive import Predictor, Stack, dump, load, rope
from kvswap.codec.predictive.predictor import Tensor
from kvswap.codec.predictive2.frames import CONTEXTS, SYMBOLS
from kvswap.codec.predictive2.tables import StreamTables

Shape = tuple[int, int, int, int]  # layers, heads, dims of K and V


def synthetic(
    shape: Shape, *, before: int = 2, pairs: int = 4, table: int = 0, bits: int = 11, seed: int = 0, calm: bool = False
) -> Predictor:
    """A predictor of any shape, by chance: what it expects is wrong, and what is coded against it exact all the same.

    A `calm` one is not far off for values that are about normal, so that chunks are smaller than what they hold.
    """
    rng = np.random.default_rng(seed)
    layers, heads, *dims = shape
    widths = [heads * dim for dim in dims]
    pairs_of: list[tuple[Tensor, Tensor]] = []
    for place in range(layers):
        seen = min(before, place) * sum(widths)
        first = bool(table) and place == 0
        given = [0 if first else seen + number * widths[0] for number in (0, 1)]
        sources = [0 if first else number + (2 if place else 0) for number in (0, 1)]
        make = _calm if calm else _wild
        each = [make(rng, place, *row) for row in zip(widths, given, sources, strict=True)]
        pairs_of.append((each[0], each[1]))
    turns = rope.powers(1.0 / 50.0 ** (np.arange(pairs) / max(pairs, 1)))
    memory = rng.integers(-(1 << 15), 1 << 15, (table, sum(widths))).astype(np.int16)
    keys, values = tuple(k for k, _ in pairs_of), tuple(v for _, v in pairs_of)
    stack = Stack(
        tuple(range(layers)),
        before,
        turns,
        keys,
        values,
        memory,
        (2, 3) if table and calm else (28, 33) if table else (0, 0),
    )
    if calm:
        counts = np.broadcast_to(np.exp2(-np.abs(np.arange(SYMBOLS) - 32) / 2.0), (CONTEXTS, SYMBOLS))
    else:
        counts = rng.exponential(size=(CONTEXTS, SYMBOLS)) ** 3 * (rng.random((CONTEXTS, SYMBOLS)) < 0.7)
    return load(dump(Predictor((stack,), StreamTables.of_counts(counts * 1000, bits))))


def _wild(rng: np.random.Generator, place: int, width: int, given: int, sources: int) -> Tensor:
    return Tensor(
        unit=int(rng.integers(0, 25)) if place else 8,
        mean=rng.integers(-(1 << 8), 1 << 8, width).astype(np.int32),
        factor=rng.integers(0, 1 << 14, width).astype(np.int32),
        weights=rng.integers(-63, 64, (given, width)).astype(np.int8),
        scale=rng.integers(0, 1 << 16, width).astype(np.int32),
        log_sigma=rng.integers(-40, 20, width).astype(np.int16),
        inverse=rng.integers(0, 1 << 16, width).astype(np.int32),
        token=rng.integers(-40, 40, 2 * sources + 1).astype(np.int16),
    )


def _calm(rng: np.random.Generator, place: int, width: int, given: int, sources: int) -> Tensor:
    return Tensor(
        unit=8,
        mean=rng.integers(-30, 31, width).astype(np.int32),
        factor=rng.integers(6000, 7000, width).astype(np.int32),
        weights=rng.integers(-63, 64, (given, width)).astype(np.int8),
        scale=rng.integers(1, 1 << 17, width).astype(np.int32) if place else np.full(width, 1 << 10, np.int32),
        log_sigma=rng.integers(-2, 3, width).astype(np.int16),
        inverse=rng.integers(3000, 5000, width).astype(np.int32),
        token=np.array([*[4, 15] * sources, 3], np.int16),
    )
