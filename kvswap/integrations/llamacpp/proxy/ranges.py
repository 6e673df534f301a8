"""Ranges of positions, and rows of layers that are cut and joined by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from kvswap.core.errors import IntegrityError
from kvswap.integrations.llamacpp import LayerRows


def common_length(own: Sequence[int], other: Sequence[int]) -> int:
    """Return how many ids two sequences begin with in common."""
    count = 0
    for one, two in zip(own, other, strict=False):
        if one != two:
            break
        count += 1
    return count


def joined_ranges(parts: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield ranges, given in order, with those joined that touch or overlap."""
    current: tuple[int, int] | None = None
    for first, stop in parts:
        if current is not None and first <= current[1]:
            current = (current[0], max(current[1], stop))
            continue
        if current is not None:
            yield current
        current = (first, stop)
    if current is not None:
        yield current


def missing_ranges(held: Iterable[tuple[int, int]], first: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of [first, stop) that are not in any of those held."""
    at = first
    for low, high in joined_ranges(sorted(held)):
        if at < min(low, stop):
            yield at, min(low, stop)
        at = max(at, high)
    if at < stop:
        yield at, stop


def rows_between(layer: LayerRows, first: int, stop: int) -> LayerRows:
    """Return the rows [first, stop) of a layer."""
    return LayerRows(layer.keys[first:stop], layer.values[first:stop])


def layers_between(layers: Sequence[LayerRows], begin: int, first: int, stop: int) -> list[LayerRows]:
    """Return the positions [first, stop) of rows that begin at position `begin`."""
    return [rows_between(layer, first - begin, stop - begin) for layer in layers]


def stacked_layers(parts: Sequence[Sequence[LayerRows]]) -> list[LayerRows]:
    """Return the rows of several segments behind each other, layer by layer."""
    layers = zip(*parts, strict=True)
    return [LayerRows(np.concatenate([x.keys for x in of]), np.concatenate([x.values for x in of])) for of in layers]


def window_layers(parts: list[tuple[int, int, list[LayerRows]]], begin: int, end: int) -> list[LayerRows]:
    """Return the rows [begin, end) of sliding layers.  Raises `IntegrityError` where some are missing."""
    taken, at = [], begin
    for low, high, layers in sorted(parts, key=lambda part: part[:2]):
        if high > at:
            taken.append(layers_between(layers, low, max(low, at), high))
            at = high
    if at != end or not taken:
        raise IntegrityError("the window of the sliding layers is not here whole", cause="a file was deleted")
    return stacked_layers(taken)
