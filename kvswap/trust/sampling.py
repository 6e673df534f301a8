"""The positions that a reader checks: its own secret until it has looked.

One position is taken out of each of k stretches of equal length, at random within it.  So no changed span of 2 N / k
tokens can go unseen, and a single position is found as often as with k positions anywhere: k / N.
"""

from __future__ import annotations

import secrets

from blake3 import blake3

SEED_BYTES = 32


def new_seed() -> bytes:
    """Draw a random seed; the manifest must be fixed before, so that its publisher cannot know the positions."""
    return secrets.token_bytes(SEED_BYTES)


def draw(seed: bytes, artifact: bytes, tokens: int, samples: int) -> list[int]:
    """Draw the positions to check, in ascending order; fewer than `samples` in a short document.

    The result follows from the seed and the artifact id alone, so whoever is told the seed can draw them again.

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
    """Compute the least probability that one of `readers` checks one of `changed` neighbouring positions.

    The least is over all places where the changed span may lie.

    >>> round(coverage(1024, 32, 1), 4), coverage(1024, 32, 64)
    (0.0312, 1.0)
    >>> round(coverage(1024, 32, 1, readers=32), 2)
    0.64
    """
    stretch = tokens / max(1, min(samples, tokens))
    # The worst case for the reader is a span that lies half in one stretch and half in the next.
    one, other = changed - changed // 2, changed // 2
    missed = max(0.0, 1 - one / stretch) * max(0.0, 1 - other / stretch)
    return 1 - missed**readers
