"""Which positions a reader looks at: its own secret until it has looked.

One position out of each of k stretches of equal length, at random within it.  So no changed span of 2 N / k
tokens can go unseen, and a single position is found as often as with k positions anywhere: k / N.
"""

from __future__ import annotations

import secrets

from blake3 import blake3

SEED_BYTES = 32


def new_seed() -> bytes:
    """Randomness of the reader's own; to be drawn only when the manifest is fixed."""
    return secrets.token_bytes(SEED_BYTES)


def draw(seed: bytes, artifact: bytes, tokens: int, samples: int) -> list[int]:
    """Positions in order, fewer than `samples` in a short document.  Who knows the seed can draw them again.

    >>> len(draw(bytes(32), b"id", 1024, 32)), draw(bytes(32), b"id", 3, 32)
    (32, [0, 1, 2])
    """
    count = max(1, min(samples, tokens))
    stream = blake3(artifact, key=seed).digest(length=8 * count)
    out = []
    for i in range(count):
        low, high = i * tokens // count, (i + 1) * tokens // count
        out.append(low + int.from_bytes(stream[8 * i : 8 * i + 8], "big") % (high - low))
    return out


def coverage(tokens: int, samples: int, changed: int, readers: int = 1) -> float:
    """Least chance that one of so many readers looks at one of `changed` neighbouring positions, wherever they are.

    >>> round(coverage(1024, 32, 1), 4), coverage(1024, 32, 64)
    (0.0312, 1.0)
    >>> round(coverage(1024, 32, 1, readers=32), 2)
    0.64
    """
    stretch = tokens / max(1, min(samples, tokens))
    # Worst for the reader is a span that lies half in one stretch and half in the next.
    one, other = changed - changed // 2, changed // 2
    missed = max(0.0, 1 - one / stretch) * max(0.0, 1 - other / stretch)
    return 1 - missed**readers
