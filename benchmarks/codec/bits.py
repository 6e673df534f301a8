"""What each tensor costs, in bits a value: ours as coded, and bounds that need no codec."""

from __future__ import annotations

import numpy as np

from benchmarks.codec.samples import Block


def predictive(block: Block, dtype: str) -> list[float]:
    """By tensor, K and V of each layer in turn, with a predictor of version 2."""
    from kvswap.codec.predictive import codec, memory
    from kvswap.codec.predictive.buckets import FORMATS
    from kvswap.codec.predictive2 import plain
    from kvswap.codec.predictive2.frames import ESCAPE
    from kvswap.codec.predictive2.plan import plan_of

    form = FORMATS[dtype]
    plan = plan_of(block.context, [], block.parts, form)
    entries = memory.find(plan.stack, codec.flat(block.parts[1]), form, codec.BEST) if plan.has_table else None
    out = []
    for value, context in plain.split_all(plan, entries):
        coded = plan.tables.bits - np.log2(plan.tables.frequency[context, value.symbol].astype(np.float64))
        out.append(float((coded + value.count + np.where(value.symbol == ESCAPE, form.bits, 0)).mean()))
    return out


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
