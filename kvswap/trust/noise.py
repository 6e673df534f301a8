"""Honest noise: how far apart two right caches are, and so from where on one is wrong.

The same model gives other bits on another machine, with other thread counts or kernels, and for other shapes
of the same sum.  An error is |supplied - computed| / |computed|, by position, layer, and K or V.  What is
usual differs by layer, so every error is taken in multiples of the usual one of its layer, and two root mean
squares of these are judged: over the layers, for every position, which shows a position that is of something
else; and over the positions, for every layer, which shows a model that is slightly another one in all of them.
Both are compared with the most that honest caches show (measured: `kvswap.worker.noise`): `MARGIN` times
that is not noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MARGIN = 2.0
MICRO = 1_000_000
GROUP = 32  # positions over which layers are judged; fewer say little of a layer
# Relative, of a value that is rounded the other way: where no noise was seen there may still be that much.
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-20}

Errors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Score:
    """Multiples of the most that honest caches show, by position and by [layer, K or V]."""

    positions: Errors
    layers: Errors

    @property
    def worst(self) -> float:
        """Of all; at most a million."""
        worst = float(max(self.positions.max(initial=0.0), self.layers.max(initial=0.0)))
        return min(worst, 1e6)

    @property
    def honest(self) -> bool:
        return self.worst <= MARGIN

    @property
    def wrong(self) -> list[int]:
        """Which positions, by their place in what was looked at."""
        return [int(i) for i in np.flatnonzero(self.positions > MARGIN)]

    @property
    def layer(self) -> int:
        """The layer that is furthest from what it should be."""
        return int(np.unravel_index(self.layers.argmax(), self.layers.shape)[0])


@dataclass(frozen=True, slots=True)
class Spread:
    """Of honest errors [.., layer, K or V]: the usual one, and the most that positions and layers show of it."""

    usual: Errors
    position: float
    layer: float

    @classmethod
    def measure(cls, samples: Sequence[Errors], dtype: str) -> Spread:
        """From the errors of several right ways of computing."""
        every = np.concatenate(samples)
        usual = np.maximum(np.sqrt(np.square(every).mean(0)), ROUNDING[dtype] / 2)
        positions = layers = 0.0
        for errors in samples:
            relative = np.square(errors / usual)
            positions = max(positions, float(np.sqrt(relative.mean((1, 2))).max()))
            # As many at a time, from all over the text, as are looked at later.
            for first in range(step := max(1, len(relative) // GROUP)):
                layers = max(layers, float(np.sqrt(relative[first::step].mean(0)).max()))
        return cls(usual.astype(np.float32), max(positions, 1.0), max(layers, 1.0))

    def score(self, errors: Errors) -> Score:
        """Of a cache in question."""
        with np.errstate(invalid="ignore", over="ignore"):
            relative = np.square(errors.astype(np.float64) / self.usual)
            positions = np.sqrt(relative.mean((1, 2))) / self.position
            layers = np.sqrt(relative.mean(0)) / self.layer
        if len(errors) < GROUP // 2:
            layers = np.zeros_like(layers)
        return Score(*(np.nan_to_num(a, nan=np.inf, posinf=np.inf).astype(np.float32) for a in (positions, layers)))

    def plain(self) -> list[Any]:
        """Whole numbers, as files and the pipe hold them."""
        usual = [[int(k * MICRO * 1000), int(v * MICRO * 1000)] for k, v in self.usual.tolist()]
        return [usual, int(self.position * MICRO), int(self.layer * MICRO)]

    @classmethod
    def of(cls, value: list[Any]) -> Spread:
        usual = np.array(value[0], np.float64) / (MICRO * 1000)
        if usual.ndim != 2 or usual.shape[1] != 2 or not (usual > 0).all():
            raise ValueError("noise is a pair for each layer")
        return cls(usual.astype(np.float32), float(value[1]) / MICRO, float(value[2]) / MICRO)


@dataclass(frozen=True, slots=True)
class Noise:
    """Of one model on one machine: at sampled positions (None with sliding layers), recomputed, of fingerprints."""

    samples: Spread | None
    recompute: Spread
    fingerprints: Spread

    def plain(self) -> dict[str, Any]:
        return {
            "samples": self.samples.plain() if self.samples else None,
            "recompute": self.recompute.plain(),
            "fingerprints": self.fingerprints.plain(),
        }

    @classmethod
    def of(cls, value: dict[str, Any]) -> Noise:
        """What `plain` gave.  Raises `KeyError`, `TypeError`, `IndexError` or `ValueError` for a damaged row."""
        samples = value["samples"]
        return cls(
            Spread.of(samples) if samples is not None else None,
            Spread.of(value["recompute"]),
            Spread.of(value["fingerprints"]),
        )
