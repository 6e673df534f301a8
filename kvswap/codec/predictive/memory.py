"""The token table: what the first layer holds for frequent tokens.

K and V of a model's first layer depend on the token alone, but for the rotation of its position (RoPE).  So the
predictor keeps them for the tokens that texts use most, and a chunk names the entry of each of its tokens; 0 stands for
none.  The writer finds entries by comparing V: it needs no text for that.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive import plain
from kvswap.codec.predictive.buckets import Format
from kvswap.codec.predictive.predictor import FEATURE, FEATURE_SHIFT, SHIFT, Stack, Tensor

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

FINER = 4  # steps for each unit of a feature
_COMPARED = 64  # channels of V by which entries are found


def recall_scale(factor: Array) -> Array:
    """Compute the factors from steps of the table to units, int32 [channels], SHIFT bits after the point.

    `factor` has those from units to features.
    """
    lossless = 2.0 ** (FEATURE_SHIFT + SHIFT) / (FINER * factor.astype(np.float64))
    out: Array = np.clip(np.rint(lossless), 1, 2**31 - 1).astype(np.int32)
    return out


def entries(tensor: Tensor, straight: Ints) -> Array:
    """Convert unrotated values in units to steps of the table, int16 [tokens, channels]."""
    scaled = (straight - tensor.mean) * tensor.factor * FINER + (1 << (FEATURE_SHIFT - 1)) >> FEATURE_SHIFT
    out: Array = np.clip(scaled, -(1 << 15) + 1, (1 << 15) - 1).astype(np.int16)
    return out


def find(stack: Stack, words: Array, form: Format, backend: Any) -> Array:
    """Find the table entry, from 1, of each token by the first layer's V: uint16 [tokens]; 0 where none is close."""
    tensor = stack.v[0]
    seen = _likeness(entries(tensor, plain.units(words, form, tensor.unit)))
    if "held" not in stack.prepared:
        held = _likeness(stack.memory[:, -len(tensor.mean) :])
        size = np.square(held.astype(np.int32)).sum(axis=1)
        stack.prepared["held"] = replace(tensor, weights=np.ascontiguousarray(held.T), prepared={}), held, size // 2
    compared, held, half = stack.prepared["held"]
    best = (backend.sums(compared, [seen])[:, : len(held)] - half).argmax(axis=1)  # the nearest entry
    off, whole = (
        np.square(x, dtype=np.int32).sum(axis=1) for x in (np.subtract(seen, held[best], dtype=np.int32), seen)
    )
    return np.where(16 * off <= whole, best + 1, 0).astype(np.uint16)


def _likeness(steps: Array) -> Array:
    out: Array = np.clip(steps[:, :_COMPARED] // FINER, -FEATURE, FEATURE).astype(np.int8)
    return out


def rows(stack: Stack, found: Array, number: int) -> Array:
    """Return the table's K (`number` 0) or V (1) of the found entries: int32 [tokens, channels].

    They are in steps from the mean; rows of tokens without an entry are zeros.
    """
    split = len(stack.k[0].mean)
    columns = stack.memory[:, split:] if number else stack.memory[:, :split]
    out = np.zeros((len(found), columns.shape[1]), np.int32)
    hit = found > 0
    out[hit] = columns[found[hit].astype(np.int64) - 1]
    return out


def unsure(stack: Stack, found: Array, number: int) -> Array:
    """Return by how many quarter octaves sigma of K (`number` 0) or V (1) is wider, int16 [tokens].

    It is wider for tokens without an entry.
    """
    return np.where(found > 0, 0, stack.missing[number]).astype(np.int16)
