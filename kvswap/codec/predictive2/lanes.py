"""The entropy coder: streams of 32 interleaved range-ANS states over 16-bit words (Giesen, arXiv 1402.3392).

Raw fields go through the same states: taking n bits off a state leaves room that the next word fills, so there is one
sequence of words and nothing else.  All streams of a chunk are worked on at once; this is the plain form, in numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive2.frames import ESCAPE, BucketFrame, SplitParts, fields, join
from kvswap.codec.predictive2.plan import LANES
from kvswap.codec.predictive2.tables import StreamTables
from kvswap.core.errors import IntegrityError

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

_LOW = np.uint64(1 << 16)
_WORD = np.uint64(16)


class LanesReader:
    """A reader of all streams of a chunk.  Its methods raise `IntegrityError`."""

    def __init__(self, states: Array, words: Array, begins: Array, ends: Array, tables: StreamTables) -> None:
        """Start at `states`, [streams, 32]; each stream's words are those from `begins` to `ends` of `words`."""
        if (states < _LOW).any():
            raise IntegrityError("a predictive2 chunk's coder starts in no state of its own")
        self._state = states.astype(np.uint64)
        self._words = np.append(words, np.uint16(0)).astype(np.uint64)
        self._at, self._ends = begins.astype(np.int64), ends.astype(np.int64)
        self._tables = tables

    def step(self, frame: BucketFrame) -> Array:
        """Read the words of one step, [streams, lanes], of the first streams."""
        streams, lanes = frame.context.shape
        bits = np.uint64(self._tables.bits)
        x = self._state[:streams, :lanes]
        slot = x & ((np.uint64(1) << bits) - np.uint64(1))
        symbol = self._tables.symbol[frame.context, slot]
        frequency, start = (
            t[frame.context, symbol].astype(np.uint64) for t in (self._tables.frequency, self._tables.start)
        )
        x[...] = frequency * (x >> bits) + slot - start
        self._refill(x)
        symbol = symbol.astype(np.int32)
        count, bad = fields(symbol, frame, x)
        if bad.any():
            raise IntegrityError("a predictive2 chunk has a run that nobody writes")
        raw = self._take(x, np.minimum(count, 16))
        if frame.form.bits == 32:
            raw |= self._take(x, np.maximum(count - 16, 0)) << 16
        out = join(symbol, count, raw, frame)
        escaped = symbol == ESCAPE
        if escaped.any():
            each = frame.form.bits // 16
            literal = self._next(np.repeat(escaped, each, axis=1)).reshape(streams, lanes, each).astype(np.int64)
            out = np.where(escaped, sum(literal[..., i] << 16 * i for i in range(each)), out)
        return out

    def _take(self, x: Array, count: Array) -> Array:
        count = count.astype(np.uint64)
        raw: Array = (x & ((np.uint64(1) << count) - np.uint64(1))).astype(np.int64)
        x >>= count
        self._refill(x)
        return raw

    def _refill(self, x: Array) -> None:
        low = x < _LOW
        if low.any():
            words = self._next(low)
            x[low] = (x << _WORD | words)[low]

    def _next(self, wanted: Mask) -> Array:
        """Return the next words of each stream at the places where they are wanted, in order of lanes."""
        streams = len(wanted)
        after = np.cumsum(wanted, axis=1)
        at = self._at[:streams]
        if (at + after[:, -1] > self._ends[:streams]).any():
            raise IntegrityError("a predictive2 chunk's words end early")
        out: Array = self._words[np.where(wanted, at[:, None] + after - 1, -1)]
        at += after[:, -1]
        return out

    def finish(self) -> None:
        """Raise `IntegrityError` unless every stream was read to its end and every state is where encoding began."""
        if (self._at != self._ends).any() or (self._state != _LOW).any():
            raise IntegrityError("a predictive2 chunk's coder does not end where it began")


class LanesWriter:
    """A writer of all streams of a chunk, from the last step to the first."""

    def __init__(self, streams: int, tables: StreamTables, bits: int) -> None:
        self._state = np.full((streams, LANES), _LOW, np.uint64)
        self._pieces: list[tuple[Array, Array]] = []  # numbers of streams and words, the last ones first
        self._tables = tables
        self._bits = bits

    def step(self, value: SplitParts, context: Array) -> None:
        """Write one step, [streams, lanes], of the first streams."""
        streams, lanes = context.shape
        escaped = value.symbol == ESCAPE
        if escaped.any():
            each = self._bits // 16
            words = np.stack([value.raw >> 16 * i for i in range(each)], axis=-1).reshape(streams, -1)
            self._emit(np.repeat(escaped, each, axis=1), words)
        x = self._state[:streams, :lanes]
        for part in range(self._bits // 16 - 1, -1, -1):
            count = np.clip(value.count - 16 * part, 0, 16).astype(np.uint64)
            bits = value.raw.astype(np.uint64) >> np.uint64(16 * part) & ((np.uint64(1) << count) - np.uint64(1))
            self._shed(x, x >> (np.uint64(32) - count) > 0)
            x[...] = x << count | bits
        frequency, start = (
            t[context, value.symbol].astype(np.uint64) for t in (self._tables.frequency, self._tables.start)
        )
        log_total = np.uint64(self._tables.bits)
        self._shed(x, x >> (np.uint64(32) - log_total) >= frequency)
        quotient, rest = np.divmod(x, frequency)
        x[...] = (quotient << log_total) + rest + start

    def _shed(self, x: Array, full: Mask) -> None:
        if full.any():
            self._emit(full, x)
            x[full] >>= _WORD

    def _emit(self, where: Mask, words: Array) -> None:
        self._pieces.append((np.nonzero(where)[0], (words[where] & words.dtype.type(0xFFFF)).astype(np.uint16)))

    def finish(self) -> tuple[Array, list[Array]]:
        """Return the states to start from, [streams, 32], and each stream's words."""
        pieces = self._pieces[::-1] or [(np.empty(0, np.int64), np.empty(0, np.uint16))]
        numbers, words = (np.concatenate(several) for several in zip(*pieces, strict=True))
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers, minlength=len(self._state)))
        return self._state.astype(np.uint32), np.split(words[order], ends[:-1])
