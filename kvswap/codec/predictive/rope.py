"""Rotary positions (RoPE) in integers: the same rotation on every machine.

A pair of channels at position p is rotated by p * angle.  cos and sin of that come from the bits of p and a table of
cos and sin of 2^i * angle, multiplied in 30-bit fixed point with a stated rounding (Goertzel's idea, by squaring): no
floating point is left to differ.  The error against the true angle is below 1e-7, which costs a prediction nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

BITS = 24  # positions below 2^24
_ONE = 30
_HALF = np.int64(1 << (_ONE - 1))
TURN = 14  # bits after the point in the tables that `tables` returns


def powers(inverse_frequency: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Compute cos and sin of 2^i * angle, [pairs, BITS, 2], which a predictor carries.

    They are in floating point, and so computed once, by whoever trains.
    """
    out = np.empty((len(inverse_frequency), BITS, 2), np.int32)
    for i in range(BITS):
        angle = np.asarray(inverse_frequency, np.float64) * float(1 << i)
        out[:, i, 0] = np.rint(np.cos(angle) * (1 << _ONE))
        out[:, i, 1] = np.rint(np.sin(angle) * (1 << _ONE))
    return out


def tables(powers: npt.NDArray[np.int32], positions: Ints) -> tuple[Ints, Ints]:
    """Compute cos and sin of positions, [tokens, pairs], with `TURN` bits after the point."""
    cos = np.full((len(positions), len(powers)), 1 << _ONE, np.int64)
    sin = np.zeros_like(cos)
    for i in range(BITS):
        rows = np.flatnonzero(positions >> i & 1)
        if rows.size:
            by_cos, by_sin = powers[:, i, 0].astype(np.int64), powers[:, i, 1].astype(np.int64)
            c, s = cos[rows], sin[rows]
            cos[rows] = (c * by_cos - s * by_sin + _HALF) >> _ONE
            sin[rows] = (c * by_sin + s * by_cos + _HALF) >> _ONE
    shift = _ONE - TURN
    return (cos + (1 << (shift - 1))) >> shift, (sin + (1 << (shift - 1))) >> shift


def rotate(values: Ints, cos: Ints, sin: Ints, back: bool) -> Ints:
    """Rotate values [tokens, heads, dim] by the tables, or back.

    Channel i is paired with i + pairs; the channels after the pairs stay as they are.
    """
    pairs = cos.shape[1]
    if not pairs:
        return values
    sin = -sin if back else sin
    c, s = cos[:, None, :], sin[:, None, :]
    out = values.copy()
    a, b = values[..., :pairs], values[..., pairs : 2 * pairs]
    half = 1 << (TURN - 1)
    out[..., :pairs] = (a * c - b * s + half) >> TURN
    out[..., pairs : 2 * pairs] = (b * c + a * s + half) >> TURN
    return out
