"""A floating-point value, given what is expected of it: a bucket, which is coded, and bits, which are not.

Expected is mu +- sigma.  The buckets are as wide as the largest power of two below sigma / 4, or as
one unit in the last place near mu if that is more.  A value's symbol is how many buckets it lies from
mu's; sign is taken out of it by turning everything so that mu is not negative.  Inside a bucket all
values are as good as equally likely: their remaining bits are stored as they are.  A value in the
bucket that touches zero may be of any smaller exponent: a run of zeros says of which.  Whatever does
not fit - far off, zero, denormal, infinite, not a number - is an escape with all its bits.

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
_FINEST, _COARSEST = -12, 11  # of s - 4 * (log2 of the bucket): how many quarter octaves sigma is wider
RATIOS = _COARSEST - _FINEST + 1
CONTEXTS = 4 * RATIOS  # and the quarter of its bucket that mu lies in


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format."""

    bits: int
    exponent: int
    mantissa: int

    @property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1


FORMATS = {"bfloat16": Format(16, 8, 7), "float16": Format(16, 5, 10), "float32": Format(32, 8, 23)}


def length(values: Ints) -> Ints:
    """Bits of non-negative integers below 2^53; 0 of 0."""
    return np.frexp(values.astype(np.float64))[1].astype(np.int64)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the buckets lie, for each value."""

    form: Format
    negative: npt.NDArray[np.bool_]  # mu
    log_width: Ints
    base: Ints  # mu's bucket
    context: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, form: Format, mu: Ints, log_sigma: Ints, unit: int) -> Frame:
        """`mu` in 2^-unit, `log_sigma` in quarter octaves; any shape."""
        size = np.abs(mu)
        octave = log_sigma >> 2
        reach = size + np.left_shift(1, np.clip(octave + unit, 0, 40))
        last_place = np.maximum(length(reach) - 1 - unit - form.mantissa, 1 - form.bias - form.mantissa)
        log_width = np.maximum(np.maximum(last_place, octave - 2), -unit - 4)
        shift = np.minimum(log_width + unit + 4, 62)  # of mu in sixteenths of its unit, never negative
        base = size << 4 >> shift
        quarter = size << 6 >> shift & 3
        ratio = np.clip(log_sigma - 4 * log_width, _FINEST, _COARSEST) - _FINEST
        return cls(form, mu < 0, log_width, base, (ratio * 4 + quarter).astype(np.uint8))


@dataclass(frozen=True, slots=True)
class Split:
    """Values taken apart: `run` is -1 where there is none."""

    symbol: npt.NDArray[np.uint8]
    run: Ints
    count: Ints  # of plain bits
    plain: Ints


def split(words: Array, frame: Frame) -> Split:
    """Take bit patterns apart."""
    form = frame.form
    word = words.astype(np.int64)
    size = word & ((1 << (form.bits - 1)) - 1)
    negative = (word >> (form.bits - 1)).astype(bool) ^ frame.negative
    exponent = size >> form.mantissa
    fraction = size & ((1 << form.mantissa) - 1)
    whole = fraction | 1 << form.mantissa
    over = frame.log_width - (exponent - form.bias - form.mantissa)  # buckets are 2^over of the last place here
    down = np.clip(over, 0, form.mantissa)
    near = over > form.mantissa
    steps = np.where(near, 0, np.where(over >= 0, whole >> down, whole << np.clip(-over, 0, 12)))
    run = np.where(near, over - form.mantissa - 1, -1)
    count = np.where(near, form.mantissa, down)
    plain = np.where(near, fraction, whole & ((np.int64(1) << down) - 1))
    symbol = np.where(negative, -1 - steps, steps) - frame.base + _MIDDLE
    usual = (exponent > 0) & (exponent < (1 << form.exponent) - 1) & (over >= -12) & (run <= LONGEST_RUN)
    usual &= (symbol >= 0) & (symbol < ESCAPE)
    return Split(
        np.where(usual, symbol, ESCAPE).astype(np.uint8),
        np.where(usual, run, -1),
        np.where(usual, count, form.bits),
        np.where(usual, plain, word),
    )


def escape(value: Split, hit: npt.NDArray[np.bool_], words: Array, form: Format) -> Split:
    """The same with escapes in the given places."""
    return Split(
        np.where(hit, ESCAPE, value.symbol).astype(np.uint8),
        np.where(hit, -1, value.run),
        np.where(hit, form.bits, value.count),
        np.where(hit, words.astype(np.int64), value.plain),
    )


def needs(symbol: Array, frame: Frame) -> tuple[npt.NDArray[np.bool_], Ints]:
    """Which symbols have a run, and how many plain bits each has."""
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
    """The bit patterns; of a stream that nobody wrote, some bit patterns."""
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
