"""The frequencies of symbols by context, and how counts become them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.predictive2.frames import CONTEXTS, ESCAPE, SYMBOLS
from kvswap.core.errors import IntegrityError

Array = npt.NDArray[Any]

FEWEST_BITS, BITS, MOST_BITS = 10, 11, 12
_RARE = 0.4  # of a slot: what is rarer is an escape, for a whole slot would cost the others more


class StreamTables:
    """The frequencies of symbols by context, [80, 64], each row adding up to 2^bits; 0 for what is an escape.

    Making it raises `IntegrityError` for other shapes and sums, and where the escape itself cannot be coded.
    """

    def __init__(self, frequencies: Array, bits: int) -> None:
        if not FEWEST_BITS <= bits <= MOST_BITS or frequencies.shape != (CONTEXTS, SYMBOLS):
            raise IntegrityError("a table of frequencies is of another shape")
        wide = frequencies.astype(np.int64)
        if (wide.sum(1) != 1 << bits).any() or (wide < 0).any() or not wide[:, ESCAPE].all():
            raise IntegrityError("a table of frequencies does not add up, or has no escape")
        self.bits = bits
        self.frequency = np.ascontiguousarray(wide, np.uint32)
        self.start = (np.cumsum(wide, axis=1) - wide).astype(np.uint32)
        self.symbol = np.stack([np.repeat(np.arange(SYMBOLS, dtype=np.uint8), row) for row in wide])  # by slot

    @cached_property
    def slots(self) -> Array:
        """The decoding table, uint32 [contexts, 2^bits]: symbol, place in it and frequency, in 7, 12 and 13 bits."""
        rows = np.arange(CONTEXTS)[:, None]
        place = np.arange(1 << self.bits, dtype=np.uint32) - self.start[rows, self.symbol]
        out: Array = self.symbol | place << 7 | self.frequency[rows, self.symbol] << 19
        return np.ascontiguousarray(out, np.uint32)

    @cached_property
    def packed(self) -> Array:
        """The encoding table, uint32 [contexts, 64]: the frequency, and the start in the upper half."""
        return np.ascontiguousarray(self.frequency | self.start << 16, np.uint32)

    @cached_property
    def reciprocal(self) -> Array:
        """The reciprocals of the frequencies as float64, 0 of 0."""
        wide = self.frequency.astype(np.float64)
        return np.divide(1.0, wide, out=np.zeros_like(wide), where=wide > 0)

    @classmethod
    def flat(cls, bits: int = BITS) -> StreamTables:
        """Make tables in which all symbols are equally frequent."""
        return cls(np.full((CONTEXTS, SYMBOLS), (1 << bits) // SYMBOLS, np.uint16), bits)

    @classmethod
    def of_counts(cls, counts: Array, bits: int = BITS) -> StreamTables:
        """Make tables from how often each symbol occurred in each context, [80, 64]."""
        return cls(np.stack([_normalized(row, 1 << bits) for row in np.asarray(counts, np.float64)]), bits)


def _normalized(counts: Array, total: int) -> Array:
    """Scale one row of counts to whole numbers that add up to `total`, without the symbols that are too rare."""
    usual = counts[:ESCAPE] * total >= _RARE * max(counts.sum(), 1.0)
    usual &= counts[:ESCAPE] > 0
    kept = np.append(np.where(usual, counts[:ESCAPE], 0.0), counts[ESCAPE] + counts[:ESCAPE][~usual].sum() + 0.5)
    out = np.where(kept > 0, np.maximum(1, np.rint(kept / kept.sum() * total)), 0).astype(np.int64)
    while excess := int(out.sum()) - total:
        largest = int(out.argmax())
        out[largest] -= min(excess, int(out[largest]) - 1) if excess > 0 else excess
    return out
