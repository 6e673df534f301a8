"""The entropy coder: 128 interleaved range-ANS states over one stream of 16-bit words (Giesen, arXiv 1402.3392).

A symbol is coded under a context; each context has a table of frequencies that add up to 4096.  Value i of a segment
belongs to state i mod 128; a segment's last step uses the first states only.  Decoding ends with every state where
encoding began it: a stream that was changed is noticed there, if not before.  This is the plain form, in numpy;
`_fast.c` does the same in one pass.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.core.errors import IntegrityError

LANES = 128
BITS = 12
SYMBOLS = 128
_LOW = 1 << 16  # states live in [2^16, 2^32)

Array = npt.NDArray[Any]


class FrequencyTables:
    """The frequencies of symbols by context, [contexts, 128], each row adding up to 4096; 0 for what cannot be coded.

    Making it raises `IntegrityError` for other shapes and sums.
    """

    def __init__(self, frequencies: Array) -> None:
        if frequencies.ndim != 2 or frequencies.shape[1] != SYMBOLS or (frequencies.sum(1) != 1 << BITS).any():
            raise IntegrityError("a table of frequencies does not add up")
        self.frequency = np.ascontiguousarray(frequencies, np.uint16)
        ends = np.cumsum(self.frequency, axis=1, dtype=np.uint32)
        self.start = (ends - self.frequency).astype(np.uint16)
        symbols = np.arange(SYMBOLS, dtype=np.uint8)
        self.symbol = np.stack([np.repeat(symbols, row) for row in self.frequency])  # by slot

    @cached_property
    def slots(self) -> Array:
        """The decoding table, uint32 [contexts, 4096]: symbol, place within it and frequency, in 7, 12 and 13 bits."""
        rows = np.arange(len(self.symbol))[:, None]
        place = np.arange(1 << BITS, dtype=np.uint32) - self.start[rows, self.symbol]
        out: Array = self.symbol | place << 7 | self.frequency[rows, self.symbol].astype(np.uint32) << 19
        return out

    @classmethod
    def flat(cls, contexts: int) -> FrequencyTables:
        """Make tables in which all symbols are equally frequent."""
        return cls(np.full((contexts, SYMBOLS), (1 << BITS) // SYMBOLS, np.uint16))


def encode(segments: list[tuple[Array, Array]], tables: FrequencyTables) -> tuple[Array, Array]:
    """Encode segments of (contexts, symbols), each of one dimension; return the coder's states and words."""
    state = np.full(LANES, _LOW, np.uint64)
    pieces: list[Array] = []
    for contexts, symbols in reversed(segments):
        frequency = tables.frequency[contexts, symbols].astype(np.uint64)
        start = tables.start[contexts, symbols].astype(np.uint64)
        for at in range((len(symbols) - 1) // LANES * LANES, -1, -LANES):
            f, s = frequency[at : at + LANES], start[at : at + LANES]
            x = state[: len(f)]
            full = x >= f << np.uint64(32 - BITS)
            pieces.append((x[full] & np.uint64(0xFFFF)).astype(np.uint16))
            x[full] >>= np.uint64(16)
            quotient, rest = np.divmod(x, f)
            x[...] = (quotient << np.uint64(BITS)) + rest + s
    words = np.concatenate(pieces[::-1]) if pieces else np.empty(0, np.uint16)
    return state.astype(np.uint32), words


class RansDecoder:
    """A decoder of segments, in the order in which they were encoded."""

    def __init__(self, states: Array, words: Array, tables: FrequencyTables) -> None:
        if (states < _LOW).any():
            raise IntegrityError("a predictive chunk's coder starts in no state of its own")
        self._state = states.astype(np.uint64)
        self._words = words.astype(np.uint64)
        self._at = 0
        self._tables = tables

    def segment(self, contexts: Array) -> Array:
        """Decode the symbols of one segment, given their contexts.

        Raises `IntegrityError` when the words end early.
        """
        out = np.empty(len(contexts), np.uint8)
        tables = self._tables
        for at in range(0, len(contexts), LANES):
            context = contexts[at : at + LANES]
            x = self._state[: len(context)]
            slot = x & np.uint64((1 << BITS) - 1)
            symbol = tables.symbol[context, slot]
            frequency, start = tables.frequency[context, symbol], tables.start[context, symbol]
            x[...] = frequency.astype(np.uint64) * (x >> np.uint64(BITS)) + slot - start
            low = np.flatnonzero(x < _LOW)
            words = self._words[self._at : self._at + len(low)]
            if len(words) < len(low):
                raise IntegrityError("a predictive chunk's words end early")
            x[low] = x[low] << np.uint64(16) | words
            self._at += len(low)
            out[at : at + LANES] = symbol
        return out

    def finish(self) -> None:
        """Raise `IntegrityError` unless everything was read and every state is where encoding began."""
        if self._at != len(self._words) or (self._state != _LOW).any():
            raise IntegrityError("a predictive chunk's coder does not end where it began")


def normalized(counts: Array) -> Array:
    """Scale counts to frequencies that add up to 4096.

    A symbol that never occurred cannot be coded, except the escape.
    """
    counts = np.asarray(counts, np.float64).copy()
    counts[..., SYMBOLS - 1] += 0.5
    out = np.zeros(counts.shape, np.int64)
    for row, target in zip(counts.reshape(-1, SYMBOLS), out.reshape(-1, SYMBOLS), strict=True):
        share = row / row.sum() * (1 << BITS)
        target[:] = np.where(row > 0, np.maximum(1, np.rint(share)), 0)
        for _ in range(1 << BITS):
            excess = int(target.sum()) - (1 << BITS)
            if not excess:
                break
            target[np.argmax(target)] -= min(excess, int(target.max()) - 1) if excess > 0 else excess
    return out.astype(np.uint16)
