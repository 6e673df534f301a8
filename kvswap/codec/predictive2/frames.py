"""The buckets of a value, given its prediction in float32, and how a value is split by them.

The prediction is mu +- sigma.  The buckets are as wide as the largest power of two that is at most half of sigma, or as
one unit in the last place near mu if that is more.  A value's symbol is the number of buckets between it and mu's;
everything is mirrored so that mu is not negative.  What the bucket leaves open of the value is its raw field.  A value
in the bucket that touches zero may have any smaller exponent: zeros and a one before its mantissa say which.  Whatever
does not fit is an escape: a word of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive.buckets import FORMATS, Format

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]

SYMBOLS = 64
ESCAPE = SYMBOLS - 1
MIDDLE = SYMBOLS // 2
_FINEST, _COARSEST = -12, 7  # range of the quarter octaves by which sigma is wider than a bucket
CONTEXTS = 4 * (_COARSEST - _FINEST + 1)  # times the quarter of its bucket in which mu lies
LONGEST = {"bfloat16": 8, "float16": 5, "float32": 8}  # run of zeros in a raw field
_LONGEST = {FORMATS[name]: run for name, run in LONGEST.items()}
_TINY, _KEPT = 27, 200  # exponents from 27 on, 200 of them, count as values in features and errors


def powers(exponent: Ints) -> npt.NDArray[np.float32]:
    """Return 2^exponent for exponents of normal numbers, made from bits."""
    return (exponent + 127 << 23).astype(np.int32).view(np.float32)


def log2(values: Ints) -> Ints:
    """Return the floor of log2 of positive integers below 2^53; -1 for 0."""
    return (np.frexp(values.astype(np.float64))[1] - 1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class BucketFrame:
    """The position of the buckets for each value, all int32: `width` is log2 of a bucket's, `base` the bucket of mu."""

    form: Format
    negative: npt.NDArray[np.bool_]
    width: Ints
    base: Ints
    context: Ints

    @classmethod
    def of(cls, form: Format, mu: npt.NDArray[np.float32], log_sigma: Ints) -> BucketFrame:
        """Place the buckets for predictions of any shape; `log_sigma` counts quarter octaves."""
        octave = log_sigma >> 2
        size = np.abs(mu)
        reach = (size + powers(octave)).view(np.int32)
        width = np.maximum((reach >> 23) - 127 - form.mantissa, octave - 1)
        width = np.maximum(width, 1 - form.bias - form.mantissa).astype(np.int32)
        quarters = (size * powers(2 - width)).astype(np.int32)
        ratio = np.clip(log_sigma - 4 * width, _FINEST, _COARSEST) - _FINEST
        context = (ratio * 4 + (quarters & 3)).astype(np.int32)
        return cls(form, np.signbit(mu), width, quarters >> 2, context)

    def map(self, take: Callable[[Array], Array]) -> BucketFrame:
        """Return the frames of what `take` picks of each array."""
        context, negative = take(self.context), take(self.negative)
        return BucketFrame(self.form, negative, take(self.width), take(self.base), context)


@dataclass(frozen=True, slots=True)
class SplitParts:
    """The parts of values: symbol, and a raw field of `count` bits; of an escape the word, which is no field."""

    symbol: Ints
    count: Ints
    raw: npt.NDArray[np.int64]

    def map(self, take: Callable[[Array], Array]) -> SplitParts:
        """Return the parts of the values that `take` picks."""
        return SplitParts(take(self.symbol), take(self.count), take(self.raw))


def split(words: Array, frame: BucketFrame, frequency: Array) -> SplitParts:
    """Split bit patterns; `frequency` is that of the tables, [contexts, 64], whose zeros are escapes."""
    form = frame.form
    word = words.astype(np.int64)
    exponent = word >> form.mantissa & ((1 << form.exponent) - 1)
    fraction = word & ((1 << form.mantissa) - 1)
    whole = fraction | 1 << form.mantissa
    negative = (word >> (form.bits - 1)).astype(bool) ^ frame.negative
    over = frame.width + form.bias + form.mantissa - exponent  # a bucket is 2^over units in the last place
    near = over > form.mantissa
    down = np.clip(over, 0, form.mantissa)
    run = over - form.mantissa - 1
    longest = _LONGEST[form]
    safe = np.clip(run, 0, longest)
    steps = np.where(near, 0, np.where(over < 0, whole << 1, whole >> down))
    symbol = np.where(negative, ~steps, steps) - frame.base + MIDDLE
    usual = (exponent > 0) & (exponent < (1 << form.exponent) - 1) & (over >= -1) & (run <= longest)
    usual &= (symbol >= 0) & (symbol < ESCAPE)
    usual &= frequency[frame.context, np.where(usual, symbol, ESCAPE)] > 0
    raw = np.where(near, 1 << safe | fraction << safe + 1, whole & ((1 << down) - 1))
    count = np.where(near, form.mantissa + 1 + safe, down)
    return SplitParts(
        np.where(usual, symbol, ESCAPE).astype(np.int32),
        np.where(usual, count, 0).astype(np.int32),
        np.where(usual, raw, word),
    )


def fields(symbol: Ints, frame: BucketFrame, state: Array) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Return how many bits each raw field has, given what it is read from, and where there is no such field."""
    mantissa = frame.form.mantissa
    steps = _steps(symbol, frame)
    count = np.clip(mantissa - log2(steps), 0, mantissa)
    low = state.astype(np.int64) & ((2 << _LONGEST[frame.form]) - 1)
    touching = (steps == 0) & (symbol != ESCAPE)
    count = np.where(touching, log2((low & -low).astype(np.int32)) + 1 + mantissa, count)
    return np.where(symbol == ESCAPE, 0, count).astype(np.int32), touching & (low == 0)


def join(symbol: Ints, count: Ints, raw: npt.NDArray[np.int64], frame: BucketFrame) -> npt.NDArray[np.int64]:
    """Restore the bit patterns, the inverse of `split`; those of escapes are left to the caller."""
    form = frame.form
    steps = _steps(symbol, frame)
    octave = log2(steps)
    over = form.mantissa - octave
    far = np.where(over >= 0, steps.astype(np.int64) << np.clip(over, 0, 60) | raw, steps >> np.clip(-over, 0, 31))
    run = count - 1 - form.mantissa
    touching = steps == 0
    exponent = np.where(touching, frame.width - 1 - run, frame.width + octave) + form.bias
    fraction = np.where(touching, raw >> np.clip(run + 1, 0, 60), far) & ((1 << form.mantissa) - 1)
    sign = (symbol - MIDDLE + frame.base < 0) ^ frame.negative
    usual = (exponent & ((1 << form.exponent) - 1)).astype(np.int64) << form.mantissa | fraction
    return usual | sign.astype(np.int64) << (form.bits - 1)


def _steps(symbol: Ints, frame: BucketFrame) -> Ints:
    bucket = symbol - MIDDLE + frame.base
    return np.where(bucket < 0, ~bucket, bucket)


def values(words: Array, form: Format) -> npt.NDArray[np.float32]:
    """Return bit patterns as float32; those below 2^-100, from 2^100 on and not finite count as 0."""
    if form.exponent == 5:
        size = words.astype(np.int32) & 0x7FFF
        bits = (size << 13) + (112 << 23)
        small = ((size & 1023).astype(np.float32) * np.float32(2.0**-24)).view(np.int32)
        bits = np.where(size >> 10 == 0, small, np.where(size >> 10 == 31, 0, bits))
        bits |= (words.astype(np.int32) >> 15) << 31
    else:
        bits = (words.astype(np.uint32) << np.uint32(32 - form.bits)).view(np.int32)
    kept = ((bits >> 23 & 255) - _TINY).astype(np.uint32) < _KEPT
    return np.where(kept, bits, 0).astype(np.int32).view(np.float32)
