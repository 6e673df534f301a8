"""Agreement of independent publishers on one cache, by their fingerprints (see `artifact.fingerprint`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvswap.artifact.layout import FINGERPRINT_WIDTH
from kvswap.trust.noise import MARGIN, Errors, Spread


@dataclass(frozen=True, slots=True)
class Agreement:
    """The distance of each other publisher's cache, in multiples of the largest that honest caches show."""

    scores: Mapping[str, float]

    @property
    def agreeing(self) -> int:
        """The number of publishers with the same cache; it is not a vote (see `exchange.discovery.fingerprints`)."""
        return sum(score <= MARGIN for score in self.scores.values())


def apart(one: bytes, other: bytes, rows: tuple[int, int]) -> Errors:
    """Compute the distance of two fingerprints relative to the second, by [position (64 of them), tensor, 1].

    `rows`: how many tensors have a row for each token, and how many are states, whose distance stands at every
    position.  A value that is not a number makes the distance infinite, and so do lengths that differ: those are not
    two caches of the same tokens.
    """
    growing, states = rows
    if len(one) != len(other):
        return np.full((1, growing + states, 1), np.inf)
    with np.errstate(invalid="ignore", over="ignore"):
        pairs = [np.frombuffer(data, "<f2").astype(np.float32) for data in (one, other)]
        at = len(pairs[0]) - FINGERPRINT_WIDTH * states
        positions = at // (growing * FINGERPRINT_WIDTH) if growing else 1
        grown = _far(*(data[:at].reshape(positions, growing, FINGERPRINT_WIDTH) for data in pairs))
        ended = _far(*(data[at:].reshape(1, states, FINGERPRINT_WIDTH) for data in pairs))
        out: Errors = np.concatenate([grown, np.repeat(ended, positions, 0)], 1)[..., None]
    return np.nan_to_num(out, nan=np.inf, posinf=np.inf)


def _far(a: Errors, b: Errors) -> Errors:
    far: Errors = np.sqrt(np.square(a - b).sum(-1)) / np.maximum(np.sqrt(np.square(b).sum(-1)), 1e-6)
    return far


def compare(own: bytes, others: Mapping[str, bytes], spread: Spread, rows: tuple[int, int]) -> Agreement:
    """Compare the fingerprint of the cache at hand, `own`, with those that other publishers signed.

    `others` holds fingerprints by publisher; `spread` says how far apart honest fingerprints are; `rows` is what
    `artifact.layout.fingerprint_rows` says of the layout.
    """
    return Agreement({who: spread.score(apart(own, data, rows)).worst for who, data in others.items()})
