"""What each tensor costs, in bits a value: ours as coded, and bounds that need no codec."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.codec.samples import Block


class _Counting:
    """An encoder that only adds up what coding would cost."""

    def __init__(self, tables: Any, form: Any) -> None:
        self._tables, self._form = tables, form
        self.bits: list[float] = []

    def put(self, words: Any, mu: Any, tensor: Any, token: Any) -> None:
        from kvswap.codec.predictive import buckets, plain

        frame = buckets.Frame.of(self._form, mu.astype(np.int64), plain.log_sigma(tensor, token), tensor.unit)
        value = buckets.split(words, frame)
        unsaid = self._tables.frequency[frame.context, value.symbol] == 0
        value = buckets.escape(value, unsaid, words, self._form)
        coded = 12 - np.log2(self._tables.frequency[frame.context, value.symbol].astype(np.float64))
        self.bits.append(float((coded + value.count + np.where(value.run >= 0, value.run + 1, 0)).mean()))

    def finish(self, entries: Any) -> bytes:
        return b""


def predictive(block: Block, dtype: str) -> list[float]:
    """By tensor, K and V of each layer in turn."""
    from kvswap.codec.predictive import codec, fast

    class Engine:
        sums, expected, known = fast.sums, fast.expected, fast.features
        made: list[_Counting] = []

        @classmethod
        def Encoder(cls, tables: Any, form: Any) -> _Counting:  # noqa: N802 - a backend's name
            cls.made.append(_Counting(tables, form))
            return cls.made[-1]

    codec.encode(block.context, block.parts, dtype, Engine)
    return Engine.made[-1].bits


def planes(block: Block, dtype: str) -> list[float]:
    """By tensor, each coded alone."""
    from kvswap import codec as codecs

    return [8 * len(codecs.encode([part], dtype, "planes")[1]) / part.size for part in block.parts]


def entropy(values: np.ndarray) -> float:
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def order0(part: np.ndarray) -> float:
    """Words as they are, one table for a tensor.  Few samples flatter it."""
    return entropy(part)


def by_channel(part: np.ndarray) -> float:
    """Sign and exponent with a table for each channel, all other bits as they are (bfloat16)."""
    heads, _, dim = part.shape
    return 7 + float(np.mean([entropy(part[h, :, d] >> 7) for h in range(heads) for d in range(dim)]))


def gaussian(mantissa: int) -> float:
    """Bits of a normal value of unknown scale, its mean zero, rounded to a format with so many mantissa bits."""
    x = np.random.default_rng(0).normal(size=1 << 20)
    # h(x) - E[log2 of the last place]; averaged over the scale within an octave, which is not known
    places = [np.floor(np.log2(np.abs(x * s))) - np.log2(s) - mantissa for s in 2.0 ** np.arange(0, 1, 0.125)]
    return float(0.5 * np.log2(2 * np.pi * np.e) - np.mean(places))
