"""The split of a floating-point value, given its prediction, into a bucket, which is coded, and bits, which are not.

The prediction is mu +- sigma.  The buckets are as wide as the largest power of two below sigma / 4, or as one unit in
the last place near mu if that is more.  A value's symbol is the number of buckets between it and mu's; everything is
mirrored so that mu is not negative.  Inside a bucket all values are about equally likely: their remaining bits are
stored as they are.  A value in the bucket that touches zero may have any smaller exponent: a run of zeros says which.
Whatever does not fit - far off, zero, denormal, infinite, not a number - is an escape with all its bits.

Everything is integer: mu counts units of 2^-e, sigma is 2^(s/4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive.bits import LONGEST_RUN
from kvswap.codec.predictive.rans import SYMBOLS

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

ESCAPE = SYMBOLS - 1
_MIDDLE = 64
_FINEST, _COARSEST = -12, 11  # range of s - 4 * log2(bucket), the quarter octaves by which sigma is wider
RATIOS = _COARSEST - _FINEST + 1
CONTEXTS = 4 * RATIOS  # times the quarter of its bucket in which mu lies


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format, by its numbers of bits."""

    bits: int
    exponent: int
    mantissa: int

    @property
    def bias(self) -> int:
        """The bias of the exponent."""
        return (1 << (self.exponent - 1)) - 1


FORMATS = {"bfloat16": Format(16, 8, 7), "float16": Format(16, 5, 10), "float32": Format(32, 8, 23)}


def length(values: Ints) -> Ints:
    """Return the bit lengths of non-negative integers below 2^53; 0 has none."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Frame:
    """The position of the buckets for each value.

    `log_width`: log2 of a bucket's width; `base`: the bucket of mu; `context`: the context of the entropy coder;
    `negative`: whether mu is, and so everything mirrored.
    """

    form: Format
    negative: npt.NDArray[np.bool_]
    log_width: Ints
    base: Ints
    context: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, form: Format, mu: Ints, log_sigma: Ints, unit: int) -> Frame:
        """Place the buckets for predictions of any shape.

        `mu` counts units of 2^-unit, `log_sigma` quarter octaves.
        """
        size = np.abs(mu)
        octave = log_sigma >> 2
        reach = size + np.left_shift(1, np.clip(octave + unit, 0, 40))
        last_place = np.maximum(length(reach) - 1 - unit - form.mantissa, 1 - form.bias - form.mantissa)
        log_width = np.maximum(np.maximum(last_place, octave - 2), -unit - 4)
        shift = np.minimum(log_width + unit + 4, 62)  # for mu in sixteenths of its unit; never negative
        base = size << 4 >> shift
        quarter = size << 6 >> shift & 3
        ratio = np.clip(log_sigma - 4 * log_width, _FINEST, _COARSEST) - _FINEST
        return cls(form, mu < 0, log_width, base, (ratio * 4 + quarter).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class SplitValues:
    """The parts of values: symbol, run of zeros (-1 where there is none), and `count` plain bits."""

    symbol: npt.NDArray[np.uint8]
    run: Ints
    count: Ints
    plain: Ints


def split(words: Array, frame: Frame) -> SplitValues:
    """Split bit patterns into symbols, runs and plain bits."""
    form = frame.form
    word = words.astype(np.int64)
    size = word & ((1 << (form.bits - 1)) - 1)
    negative = (word >> (form.bits - 1)).astype(bool) ^ frame.negative
    exponent = size >> form.mantissa
    fraction = size & ((1 << form.mantissa) - 1)
    whole = fraction | 1 << form.mantissa
    over = frame.log_width - (exponent - form.bias - form.mantissa)  # a bucket is 2^over units in the last place
    down = np.clip(over, 0, form.mantissa)
    near = over > form.mantissa
    steps = np.where(near, 0, np.where(over >= 0, whole >> down, whole << np.clip(-over, 0, 12)))
    run = np.where(near, over - form.mantissa - 1, -1)
    count = np.where(near, form.mantissa, down)
    plain = np.where(near, fraction, whole & ((np.int64(1) << down) - 1))
    symbol = np.where(negative, -1 - steps, steps) - frame.base + _MIDDLE
    usual = (exponent > 0) & (exponent < (1 << form.exponent) - 1) & (over >= -12) & (run <= LONGEST_RUN)
    usual &= (symbol >= 0) & (symbol < ESCAPE)
    return SplitValues(
        np.where(usual, symbol, ESCAPE).astype(np.uint8),
        np.where(usual, run, -1),
        np.where(usual, count, form.bits),
        np.where(usual, plain, word),
    )


def escape(value: SplitValues, hit: npt.NDArray[np.bool_], words: Array, form: Format) -> SplitValues:
    """Replace the values at the places `hit` by escapes that hold the whole bit patterns."""
    return SplitValues(
        np.where(hit, ESCAPE, value.symbol).astype(np.uint8),
        np.where(hit, -1, value.run),
        np.where(hit, form.bits, value.count),
        np.where(hit, words.astype(np.int64), value.plain),
    )


def needs(symbol: Array, frame: Frame) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Return which symbols are followed by a run, and how many plain bits each has."""
    steps = _steps(symbol, frame)
    count = np.clip(frame.form.mantissa - (length(steps) - 1), 0, frame.form.mantissa)
    out = symbol == ESCAPE
    return (steps == 0) & ~out, np.where(out, frame.form.bits, count)


def _steps(symbol: Array, frame: Frame) -> Ints:
    bucket = _bucket(symbol, frame)
    return np.where(bucket < 0, -1 - bucket, bucket)


def _bucket(symbol: Array, frame: Frame) -> Ints:
    return symbol.astype(np.int64) - _MIDDLE + frame.base


def join(symbol: Array, run: Ints, plain: Ints, frame: Frame) -> Array:
    """Restore the bit patterns, the inverse of `split`.

    A stream that no encoder wrote gives some bit patterns, never an error.
    """
    form = frame.form
    steps = _steps(symbol, frame)
    over = form.mantissa - (length(steps) - 1)
    far = np.where(over >= 0, steps << np.clip(over, 0, form.mantissa) | plain, steps >> np.clip(-over, 0, 60))
    exponent = np.where(steps == 0, frame.log_width - 1 - run, frame.log_width - over + form.mantissa) + form.bias
    fraction = np.where(steps == 0, plain, far) & ((1 << form.mantissa) - 1)
    sign = (_bucket(symbol, frame) < 0) ^ frame.negative
    usual = (
        (exponent & ((1 << form.exponent) - 1)) << form.mantissa | fraction | sign.astype(np.int64) << (form.bits - 1)
    )
    kind = np.uint16 if form.bits == 16 else np.uint32
    return np.where(symbol == ESCAPE, plain, usual).astype(kind)
