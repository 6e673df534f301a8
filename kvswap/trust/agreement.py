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


def apart(one: bytes, other: bytes, layers: int) -> Errors:
    """Compute the distance of two fingerprints relative to the second, by [position (64 of them), layer, K or V].

    A value that is not a number makes the distance infinite.
    """
    a, b = (
        np.frombuffer(data, "<f2").astype(np.float32).reshape(-1, layers, 2, FINGERPRINT_WIDTH) for data in (one, other)
    )
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.sqrt(np.square(a - b).sum(-1))
        near = np.maximum(np.sqrt(np.square(b).sum(-1)), 1e-6)
        out: Errors = np.nan_to_num(far / near, nan=np.inf, posinf=np.inf)
    return out


def compare(own: bytes, others: Mapping[str, bytes], spread: Spread) -> Agreement:
    """Compare the fingerprint of the cache at hand, `own`, with those that other publishers signed.

    `others` holds fingerprints by publisher; `spread` says how far apart honest fingerprints are.
    """
    layers = len(spread.usual)
    return Agreement({who: spread.score(apart(own, data, layers)).worst for who, data in others.items()})
