"""The predictor of a model: integer weights that predict a layer's K and V from the layers before.

A *stack* is the layers of one kind and shape, in order.  K of a layer is predicted from K and V of the one or more
layers before it in the stack, without its rotation (RoPE); V from those and from K; the first layer of a model from the
token (`memory`).  A tensor enters as int8 features, one scale a channel; weights are int8; sums of 1,040 products stay
below 2^24, so that even a float32 matrix product of these integers is exact in any order and on any machine.  The
likely error of the prediction, sigma, is a constant of the channel times a factor of the token, which follows from the
errors in what has been decoded of that token already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive import rope
from kvswap.codec.predictive.rans import FrequencyTables

if TYPE_CHECKING:
    from kvswap.codec.predictive2.tables import StreamTables

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

FEATURE = 127  # the largest feature
EXACT_PRODUCTS = 1_040  # 1,040 * 127 * 127 < 2^24
SHIFT = 24  # bits after the point of the factor from sums to units
FEATURE_SHIFT = 16  # bits after the point of the factor from units to features
LARGEST = 1 << 26  # units; values beyond only feed saturated features
FAR = 1 << 30  # units; the largest prediction
WRONG = 16  # counts for a deviation of one sigma
CAP = 8 * WRONG
TOKEN_CAP = 24  # quarter octaves


@dataclass(frozen=True, slots=True)
class Tensor:
    """The weights and scales that predict K or V of one layer."""

    unit: int  # values count 2^-unit
    mean: Array  # int32 [channels], in units, without the rotation
    factor: Array  # int32 [channels]: units to features, FEATURE_SHIFT bits after the point
    weights: Array  # int8 [features, channels]
    scale: Array  # int32 [channels]: sums, or steps of the token table, to units, SHIFT bits after the point
    log_sigma: Array  # int16 [channels], in quarter octaves, with the rotation
    inverse: Array  # int32 [channels]: counts for a deviation of one unit, 16 bits after the point
    token: Array  # int16: for each earlier error its weight in sixteenths and usual value; then a constant
    prepared: dict[str, Any] = field(default_factory=dict, compare=False)  # filled by a backend, when first needed

    def token_factor(self, wrong: Sequence[Ints], tokens: int) -> Array:
        """Compute the tokens' factors of sigma, int16 [tokens], in quarter octaves.

        `wrong` has the errors of other predictions of the same tokens, in quarter octaves.
        """
        total = np.full(tokens, int(self.token[-1]), np.int64)
        for (weight, usual), value in zip(self.token[:-1].reshape(-1, 2).astype(np.int64), wrong, strict=True):
            total += weight * (value - usual)
        out: Array = np.clip((total + 8) >> 4, -TOKEN_CAP, TOKEN_CAP).astype(np.int16)
        return out


@dataclass(frozen=True, slots=True)
class Stack:
    """A stack of layers of one kind and shape, with the weights that predict each of them."""

    layers: tuple[int, ...]
    before: int  # number of layers that a prediction looks back on
    rotations: Array  # int32 [pairs, bits, 2], see `rope.powers`
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    memory: Array  # token table, int16 [entries, channels of K and V] of the first layer; may have no entries
    missing: tuple[int, int]  # for K and V: quarter octaves by which sigma is wider for tokens without an entry
    prepared: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Predictor:
    """The predictor of a model: all stacks, and the tables of the entropy coder, which say for which codec it is."""

    stacks: tuple[Stack, ...]
    tables: FrequencyTables | StreamTables  # of `predictive` or of `predictive2`

    @property
    def codec(self) -> str:
        """The name of the codec that this predictor is for."""
        return "predictive" if isinstance(self.tables, FrequencyTables) else "predictive2"

    def stack_of(self, layer: int) -> tuple[Stack, int]:
        """Return the stack that a layer belongs to, and its place in it.  Raises `KeyError`."""
        for stack in self.stacks:
            if layer in stack.layers:
                return stack, stack.layers.index(layer)
        raise KeyError(layer)


@dataclass(frozen=True, slots=True)
class Rotations:
    """The rotations of some positions: cos and sin, int32 [tokens, pairs]."""

    cos: Array
    sin: Array

    @classmethod
    def of(cls, stack: Stack, start: int, tokens: int) -> Rotations:
        """Compute the rotations of `tokens` positions from `start` on."""
        cos, sin = rope.tables(stack.rotations, np.arange(start, start + tokens, dtype=np.int64))
        return cls(cos.astype(np.int32), sin.astype(np.int32))

    @property
    def pairs(self) -> int:
        """The number of channel pairs that are rotated."""
        return int(self.cos.shape[1])

    def none(self) -> Rotations:
        """Return rotations of no pairs, for V, which is not rotated."""
        return Rotations(self.cos[:, :0].copy(), self.sin[:, :0].copy())
