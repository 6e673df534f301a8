"""The steps of the codec in numpy: complete on any machine, and what `_fast.c` is tested against."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive import bits, buckets, rans, rope
from kvswap.codec.predictive.buckets import FORMATS, Format, length
from kvswap.codec.predictive.predictor import (
    CAP,
    EXACT_PRODUCTS,
    FAR,
    FEATURE,
    FEATURE_SHIFT,
    LARGEST,
    SHIFT,
    Rotations,
    Tensor,
)
from kvswap.codec.predictive.rans import FrequencyTables
from kvswap.core.errors import IntegrityError

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

HEADER = struct.Struct("<BBHIII")
VERSION = 1


def units(words: Array, form: Format, unit: int) -> Ints:
    """Convert bit patterns to whole units of 2^-unit; what is not finite becomes 0.

    Every step is exact or rounded as IEEE 754 says, whatever the machine.
    """
    if form.exponent == 5:
        values = words.view(np.float16).astype(np.float64)
    else:
        with np.errstate(invalid="ignore"):  # signalling NaNs
            values = (words.astype(np.uint32) << (32 - form.bits)).view(np.float32).astype(np.float64)
    values = np.where(np.isfinite(values), values, 0.0)
    return np.rint(np.clip(values * 2.0**unit, -LARGEST, LARGEST)).astype(np.int64)


def sums(tensor: Tensor, inputs: list[Array]) -> Array:
    """Multiply features by weights: int32 [tokens, channels].

    The products are summed in pieces below 2^24, which float32 holds exactly.
    """
    given = np.concatenate(inputs, axis=1).astype(np.float32)
    if "matrix" not in tensor.prepared:
        tensor.prepared["matrix"] = tensor.weights.astype(np.float32)
    matrix = tensor.prepared["matrix"]
    out = np.zeros((len(given), matrix.shape[1]), np.int32)
    for at in range(0, len(matrix), EXACT_PRODUCTS):
        piece = slice(at, at + EXACT_PRODUCTS)
        out += (given[:, piece] @ matrix[piece]).astype(np.int32)
    return out


def expected(tensor: Tensor, sums: Array | None, rotations: Rotations, heads: int) -> Array:
    """Predict a tensor: mu, int32 [tokens, channels], in units, rotated.

    `sums` are those of features times weights; None predicts the mean.
    """
    tokens = len(rotations.cos)
    mu = np.broadcast_to(tensor.mean.astype(np.int64), (tokens, len(tensor.mean)))
    if sums is not None:
        mu = ((sums.astype(np.int64) * tensor.scale + (1 << (SHIFT - 1))) >> SHIFT) + mu
        mu = np.clip(mu, -FAR, FAR)
    return rotate(mu, rotations, heads, back=False).astype(np.int32)


def rotate(values: Ints, rotations: Rotations, heads: int, back: bool) -> Ints:
    """Rotate values in units, [tokens, heads * dim], by their positions, or back."""
    if not rotations.pairs:
        return values
    shaped = values.reshape(len(values), heads, -1)
    return np.clip(rope.rotate(shaped, rotations.cos, rotations.sin, back), -FAR, FAR).reshape(values.shape)


def features(
    tensor: Tensor, words: Array, mu: Array, rotations: Rotations, heads: int, form: Format
) -> tuple[Array, Ints]:
    """Compute a tensor's features, int8 [tokens, channels], and how far off mu was, [tokens], in quarter octaves."""
    values = units(words, form, tensor.unit)
    wrong = wrongness(values - mu, tensor)
    straight = rotate(values, rotations, heads, back=True)
    scaled = ((straight - tensor.mean) * tensor.factor + (1 << (FEATURE_SHIFT - 1))) >> FEATURE_SHIFT
    return np.clip(scaled, -FEATURE, FEATURE).astype(np.int8), wrong


def wrongness(deviation: Ints, tensor: Tensor) -> Ints:
    """Compute how far off the prediction of each token was, [tokens], in quarter octaves."""
    each = np.minimum(np.abs(deviation) * tensor.inverse >> 16, CAP)
    return quarter_log(each.sum(axis=1) * 16 // deviation.shape[1] + 1)


def quarter_log(values: Ints) -> Ints:
    """Compute floor(4 * log2) of positive integers below 2^40.

    The constants are 2^20 times 2^(1/4), 2^(1/2) and 2^(3/4).
    """
    octaves = length(values) - 1
    mantissa = values << 20 >> octaves
    above = [(mantissa >= limit).astype(np.int64) for limit in (1246975, 1482911, 1763488)]
    return 4 * octaves + sum(above)


def log_sigma(tensor: Tensor, token: Array) -> Ints:
    """Return sigma as quarter octaves, [tokens, channels]: the channel's constant and the token's factor."""
    return tensor.log_sigma.astype(np.int64) + token.astype(np.int64)[:, None]


class Encoder:
    """An encoder of tensors: call `put` for each, then `finish`."""

    def __init__(self, tables: FrequencyTables, form: Format) -> None:
        self._tables = tables
        self._form = form
        self._segments: list[tuple[Array, Array]] = []
        self._runs: list[Array] = []
        self._plain: list[Array] = []

    def put(self, words: Array, mu: Array, tensor: Tensor, token: Array) -> None:
        """Encode the bit patterns of one tensor, [tokens, channels].

        `mu` is its prediction, `token` the tokens' factors of sigma.
        """
        frame = buckets.Frame.of(self._form, mu.astype(np.int64), log_sigma(tensor, token), tensor.unit)
        value = buckets.split(words, frame)
        unsaid = self._tables.frequency[frame.context, value.symbol] == 0
        if unsaid.any():
            value = buckets.escape(value, unsaid, words, self._form)
        self._segments.append((frame.context.reshape(-1), value.symbol.reshape(-1)))
        self._runs.append(bits.pack_runs(value.run[value.run >= 0]))
        self._plain.append(bits.pack_plain(value.plain.reshape(-1), value.count.reshape(-1)))

    def finish(self, entries: Array | None) -> bytes:
        """Return the wire bytes."""
        states, words = rans.encode(self._segments, self._tables)
        runs, plain = (np.packbits(np.concatenate(b), bitorder="little") for b in (self._runs, self._plain))
        return wire_of(self._form, entries, states, words, runs.tobytes(), plain.tobytes())


def wire_of(form: Format, entries: Array | None, states: Array, words: Array, runs: bytes, plain: bytes) -> bytes:
    """Join the parts of a chunk into wire bytes, in the layout that `codec` states."""
    entries = np.empty(0, np.uint16) if entries is None else entries
    kind = list(FORMATS.values()).index(form)
    header = HEADER.pack(VERSION, kind, len(entries), len(words), len(runs), len(plain))
    arrays = (entries.astype("<u2"), states.astype("<u4"), words.astype("<u2"))
    return b"".join([header, *(a.tobytes() for a in arrays), runs, plain])


@dataclass(frozen=True, slots=True)
class EncodedStream:
    """The parts of a chunk's wire bytes."""

    dtype: str
    entries: Array
    states: Array
    words: Array
    runs: memoryview
    plain: memoryview


def parse(wire: memoryview) -> EncodedStream:
    """Split wire bytes into their parts.  Raises `IntegrityError` unless every length agrees."""
    if len(wire) < HEADER.size:
        raise IntegrityError("a predictive chunk is shorter than its header")
    version, kind, entries, words, runs, plain = HEADER.unpack_from(wire)
    if version != VERSION or kind >= len(FORMATS):
        raise IntegrityError("a predictive chunk has an unknown version or format")
    ends = list(accumulate((2 * entries, 4 * rans.LANES, 2 * words, runs, plain), initial=HEADER.size))
    if len(wire) != ends[-1]:
        raise IntegrityError("a predictive chunk has a wrong length")
    return EncodedStream(
        list(FORMATS)[kind],
        np.frombuffer(wire, "<u2", entries, ends[0]),
        np.frombuffer(wire, "<u4", rans.LANES, ends[1]),
        np.frombuffer(wire, "<u2", words, ends[2]),
        wire[ends[3] : ends[4]],
        wire[ends[4] :],
    )


class Decoder:
    """A decoder of tensors in the order in which they were encoded: call `get` for each, then `finish`.

    Its methods raise `IntegrityError`.
    """

    def __init__(self, stream: EncodedStream, tables: FrequencyTables, form: Format) -> None:
        self._coder = rans.RansDecoder(stream.states, stream.words, tables)
        self._runs, self._plain = bits.Bits(stream.runs), bits.Bits(stream.plain)
        self._form = form

    def get(self, mu: Array, tensor: Tensor, token: Array) -> Array:
        """Decode the bit patterns of one tensor, [tokens, channels].

        `mu` is its prediction, `token` the tokens' factors of sigma.
        """
        frame = buckets.Frame.of(self._form, mu.astype(np.int64), log_sigma(tensor, token), tensor.unit)
        symbol = self._coder.segment(frame.context.reshape(-1)).reshape(mu.shape)
        with_run, count = buckets.needs(symbol, frame)
        run = np.full(mu.shape, -1)
        run[with_run] = self._runs.runs(int(with_run.sum()))
        plain = self._plain.plain(count.reshape(-1)).reshape(mu.shape)
        return buckets.join(symbol, run, plain, frame)

    def finish(self) -> None:
        """Raise `IntegrityError` unless everything was read and the coder ended in its first state."""
        self._coder.finish()
        self._runs.finish()
        self._plain.finish()
