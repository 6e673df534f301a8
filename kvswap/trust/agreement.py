"""Whether independent publishers made the same cache, by their fingerprints (see `artifact.fingerprint`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvswap.artifact.layout import FINGERPRINT_WIDTH
from kvswap.trust.noise import MARGIN, Errors, Spread


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far each other publisher's cache is, in multiples of the most that honest ones show."""

    scores: Mapping[str, float]

    @property
    def agreeing(self) -> int:
        """Return how many made the same; it is no vote (see `exchange.discovery.fingerprints`)."""
        return sum(score <= MARGIN for score in self.scores.values())


def apart(one: bytes, other: bytes, layers: int) -> Errors:
    """How far two fingerprints are from each other, relative to the second, [64 tokens, layer, K or V].

    What is not a number is infinitely far away.
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
    """`own` is made from the tensors that were supplied, `others` are what other publishers signed."""
    layers = len(spread.usual)
    return Agreement({who: spread.score(apart(own, data, layers)).worst for who, data in others.items()})
