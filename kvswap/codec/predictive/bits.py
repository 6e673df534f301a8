"""Bits that are stored without entropy coding: plain ones, lowest first, and runs of zeros that end with a one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.core.errors import IntegrityError

Ints = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

LONGEST_RUN = 15


def pack_plain(values: Ints, counts: Ints) -> Array:
    """Unpack values into one byte per bit, lowest bit first; `counts` says how many bits each value has."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    place = np.arange(total) - np.repeat(ends - counts, counts)
    return (np.repeat(values, counts) >> place & 1).astype(np.uint8)


def pack_runs(runs: Ints) -> Array:
    """Write each run length as that many zeros and a one, one byte per bit."""
    ends = np.cumsum(runs + 1)
    out = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    out[ends - 1] = 1
    return out


class Bits:
    """A reader of both kinds of bits.  Its methods raise `IntegrityError` when the data ends early."""

    def __init__(self, data: memoryview) -> None:
        self._bytes = np.concatenate([np.frombuffer(data, np.uint8), np.zeros(8, np.uint8)])
        self._total = 8 * len(data)
        self._at = 0

    def plain(self, counts: Ints) -> Ints:
        """Read one value for each entry of `counts`, which says how many bits it has, at most 32."""
        ends = np.cumsum(counts) + self._at
        if len(ends) and ends[-1] > self._total:
            raise IntegrityError("a predictive chunk's bits end early")
        begin = ends - counts
        first = begin >> 3
        window = sum(self._bytes[first + i].astype(np.int64) << (8 * i) for i in range(5))
        if len(ends):
            self._at = int(ends[-1])
        out: Ints = window >> (begin & 7) & ((np.int64(1) << counts) - 1)
        return out

    def runs(self, number: int) -> Ints:
        """Read `number` run lengths.  Raises `IntegrityError` also for one over `LONGEST_RUN`."""
        if not number:
            return np.empty(0, np.int64)
        rest = np.unpackbits(self._bytes[self._at >> 3 : -8], bitorder="little")[self._at & 7 :]
        ones = np.flatnonzero(rest)[:number]
        if len(ones) < number:
            raise IntegrityError("a predictive chunk's runs end early")
        self._at += int(ones[-1]) + 1
        lengths: Ints = np.diff(ones, prepend=-1) - 1
        if lengths.max() > LONGEST_RUN:
            raise IntegrityError("a predictive chunk has a run that nobody writes")
        return lengths

    def finish(self) -> None:
        """Raise `IntegrityError` unless all was read: less than a byte is left, and it is zero."""
        if not all_read(self._bytes, self._at):
            raise IntegrityError("a predictive chunk has bits that nobody reads")


def all_read(padded: Array, at: int) -> bool:
    """Return True if less than a byte is left from bit `at` on, and it is zero; 8 bytes of padding follow the bits."""
    rest = np.unpackbits(padded[at >> 3 : -8], bitorder="little")[at & 7 :]
    return len(rest) <= 7 and not rest.any()
