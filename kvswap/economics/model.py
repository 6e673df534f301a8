"""The cost model of arXiv 2606.13361, one function for each term.  Dollars, seconds, bytes; no IO.

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
    """Compute the dollars per reader when readers share one prefill and its storage.

    Each of them pays for moving and loading the cache.
    """
    return prefill / readers + load + move + keep / readers


def break_even_readers(*, prefill: float, load: float, move: float, keep: float = 0.0) -> float | None:
    """Compute N*, the number of readers from which sharing is cheaper than that each prefills; None: it never is."""
    saved = prefill - load - move
    return (prefill + keep) / saved if saved > 0 else None


def break_even_egress(prefill: float, size: float) -> float:
    """Compute the dollars per byte below which moving `size` bytes is cheaper than prefilling, among many readers."""
    return prefill / size


def break_even_link(bytes_per_token: float, tokens_per_second: float, ratio: float = 1.0) -> float:
    """Compute the bytes per second above which fetching is faster than prefilling at this speed, without loading.

    `ratio` is the compression ratio of the codec.
    """
    return bytes_per_token * tokens_per_second / ratio


def prefill_speed(flops: float, parameters: float) -> float:
    """Compute the tokens per second of prefill at two operations for each parameter and token.

    Attention is left out, so long texts are slower.
    """
    return flops / (2 * parameters)
