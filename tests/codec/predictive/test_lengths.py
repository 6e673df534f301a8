"""The module in C keeps its word that every length is checked: sizes that wrap, and too little room to write.

In a process of its own, as reading outside a buffer may end it.  `python -m tests.codec.predictive.test_lengths` runs
the same under a sanitizer.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvswap.codec.predictive import fast

ROOT = Path(__file__).resolve().parents[3]
EDGES = [
    *(-1, 0, 1, 2, 16, 64, 2**31 - 1, 2**31, 2**32, 2**32 + 1),
    *(2**61, 2**62, 2**62 + 1, 2**63 - 16, 2**63 - 1, -(2**63)),
]
CONTEXTS = 96


def buffers(*sizes: int) -> list[Any]:
    return [np.zeros(size, np.uint8) for size in sizes]


def refused(name: str, *arguments: Any) -> bool:
    try:
        getattr(fast._fast, name)(*arguments)
    except (ValueError, OverflowError):
        return True
    return False


def sums_that_wrap() -> None:
    frequency, start = np.ones((CONTEXTS, 128), np.uint16), np.zeros((CONTEXTS, 128), np.uint16)
    state, words = np.full(128, 1 << 16, np.uint32), np.empty(64, np.uint16)
    for size in (0, 1, 16, 100):
        contexts, symbols = buffers(size, size)
        for lengths in (
            [2**63, 2**63 + size],
            [2**64 - 1, size + 1],
            [2**62] * 4 + [size],
            [size, 2**64 - size, size],
            [size + 1],
            [2**32, 2**64 - 2**32 + size],
        ):
            given = np.array([n % 2**64 for n in lengths], np.uint64)
            right = sum(map(int, given)) == size
            assert refused("encode", state, words, contexts, symbols, given, start, frequency) or right, lengths


def sizes_that_wrap() -> None:
    draw = random.Random(5)
    some = [0, 1, 4, 16, 64, 128, 256, 1024]
    for tokens, groups, channels, by in itertools.product(EDGES, EDGES, (64, *EDGES), (2, 4)):
        assert refused("sums", *buffers(*draw.sample(some, 4)), tokens, groups, channels, by) or tokens == 0
    for _ in range(20_000):
        tokens, channels, heads, pairs, stride = (draw.choice(EDGES) for _ in range(5))
        sizes = [draw.choice(some) for _ in range(6)]
        if not refused("expected", *buffers(*sizes), tokens, channels, heads, pairs, stride):
            assert tokens * channels * 4 == sizes[0] and 2 * pairs * heads <= channels
        sizes = [draw.choice(some) for _ in range(10)]
        if not refused(
            "known", *buffers(*sizes), tokens, channels, heads, pairs, draw.randint(-1, 3), draw.choice(EDGES[:5])
        ):
            assert tokens * channels == sizes[0]
        sizes = [draw.choice(some) for _ in range(12)]
        more = [draw.choice(EDGES) for _ in range(3)]
        assert refused("decode", *buffers(*sizes), tokens, channels, *more, 0, 8, draw.randint(0, 1))


def no_room() -> None:
    """Whatever is written where nothing fits: refused, and nothing is shifted out of its word."""
    frequency = np.ones((CONTEXTS, 128), np.uint16)
    draw = np.random.default_rng(5)
    for kind, width in ((0, 2), (1, 2), (2, 4)):
        for headroom in range(0, 12):
            channels, tokens = 200, 3
            words = draw.integers(0, 1 << 16, tokens * channels * width // 2, np.uint16)
            mu, sigma, token = (
                np.zeros(tokens * channels, np.int32),
                np.zeros(channels, np.int16),
                np.zeros(tokens, np.int16),
            )
            out = buffers(tokens * channels, tokens * channels, headroom, headroom)
            left = (0, 7, 127)
            assert refused("split", *out, words, mu, sigma, token, frequency, tokens, channels, kind, 8, left, left)


def main() -> None:
    sums_that_wrap()
    no_room()
    sizes_that_wrap()


@pytest.mark.skipif(not fast.AVAILABLE, reason="the module in C was not built")
def test_every_length_is_checked() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.codec.predictive.test_lengths"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


if __name__ == "__main__":
    main()
