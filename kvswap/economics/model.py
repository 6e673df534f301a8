"""The cost model of arXiv 2606.13361, a function a term.  Dollars, seconds, bytes; no IO.

A reader of a document pays, when n readers share one prefill,

    C_prefill / n + C_load + beta * s + sigma * s * T / n

with beta the price of moving a byte, sigma of keeping one, s the size, T the time it is kept.

>>> round(shared(prefill=1.0, readers=10, load=0.01, move=0.02, keep=0.5), 3)
0.18
>>> round(break_even_readers(prefill=1.0, load=0.01, move=0.02, keep=0.0), 6)
1.030928
>>> break_even_readers(prefill=1.0, load=0.5, move=0.6) is None
True
"""

from __future__ import annotations


def shared(*, prefill: float, readers: float, load: float, move: float, keep: float = 0.0) -> float:
    """Dollars a reader, of whom each loads and has moved what was computed once and kept for all."""
    return prefill / readers + load + move + keep / readers


def break_even_readers(*, prefill: float, load: float, move: float, keep: float = 0.0) -> float | None:
    """N*: from so many readers on sharing is cheaper than each prefilling; None: never."""
    saved = prefill - load - move
    return (prefill + keep) / saved if saved > 0 else None


def break_even_egress(prefill: float, size: float) -> float:
    """Dollars a byte below which moving `size` bytes is cheaper than prefilling, among many readers."""
    return prefill / size


def break_even_link(bytes_per_token: float, tokens_per_second: float, ratio: float = 1.0) -> float:
    """Bytes a second above which fetching is faster than prefilling at this speed (load not counted)."""
    return bytes_per_token * tokens_per_second / ratio


def prefill_speed(flops: float, parameters: float) -> float:
    """Tokens a second: two operations a parameter and token; attention is left out, so long texts are slower."""
    return flops / (2 * parameters)
