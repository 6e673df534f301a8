"""Honest noise: how far apart two right caches are, and so from which distance on one is wrong.

The same model gives other bits on another machine, with other thread counts or kernels, and for other shapes of the
same sum.  An error is |supplied - computed| / |computed|, by position, layer, and tensor of the layer; where a layer
keeps nothing of a position it is not a number, and left out.  The usual error differs by layer, so every error is taken
in multiples of the usual one of its layer, and two root mean squares of these are judged: over the layers, for every
position, which shows a position that belongs to something else; and over the positions, for every layer, which shows a
model that is slightly another one everywhere.  Both are compared with the largest that honest caches show (measured:
`kvswap.worker.noise`): `MARGIN` times that is not noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

MARGIN = 2.0
MICRO = 1_000_000
GROUP = 32  # positions over which a layer is judged; fewer say little
# Relative error of a value that is rounded the other way: the least noise to expect, even where none was seen.
ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-20}

Errors = npt.NDArray[np.float32]


def _mean(values: Any, axis: int | tuple[int, ...]) -> Any:
    """Return the mean of what is a number; 0 where nothing is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis) / np.maximum(known.sum(axis), 1)


@dataclass(frozen=True, slots=True)
class Score:
    """The errors of a cache in multiples of the largest that honest caches show, by position and by [layer, tensor]."""

    positions: Errors
    layers: Errors

    @property
    def worst(self) -> float:
        """The largest of all multiples, at most a million."""
        worst = float(max(self.positions.max(initial=0.0), self.layers.max(initial=0.0)))
        return min(worst, 1e6)

    @property
    def honest(self) -> bool:
        """True if no multiple is over `MARGIN`."""
        return self.worst <= MARGIN

    @property
    def wrong(self) -> list[int]:
        """The indices, among the positions that were looked at, of those that are over `MARGIN`."""
        return [int(i) for i in np.flatnonzero(self.positions > MARGIN)]

    @property
    def layer(self) -> int:
        """The index of the layer with the largest error."""
        return int(np.unravel_index(self.layers.argmax(), self.layers.shape)[0])


class SpreadRecord(msgspec.Struct, frozen=True, array_like=True):
    """A `Spread` in whole numbers: an array of three in files and in the pipe, neither of which has floats."""

    usual: list[list[int]]
    """The usual error, in thousand-millionths, by layer and tensor."""
    position: int
    """The largest multiple that a position shows, in millionths."""
    layer: int
    """The largest multiple that a layer shows, in millionths."""


class NoiseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A `Noise` in whole numbers, as the file of measurements and the pipe of the model process hold it."""

    samples: SpreadRecord | None
    recompute: SpreadRecord
    fingerprints: SpreadRecord
    intervals: SpreadRecord | None


@dataclass(frozen=True, slots=True)
class Spread:
    """The distribution of honest errors.

    `usual`: root mean square of the relative error, [layer, tensor].  `position`, `layer`: the largest root mean
    square, in multiples of `usual`, that a position or a layer shows.
    """

    usual: Errors
    position: float
    layer: float

    @classmethod
    def measure(cls, samples: Sequence[Errors], dtype: str) -> Spread:
        """Compute the spread from the errors [position, layer, K or V] of several right ways of computing one cache."""
        every = np.concatenate(samples)
        usual = np.maximum(np.sqrt(_mean(np.square(every), 0)), ROUNDING[dtype] / 2)
        positions = layers = 0.0
        for errors in samples:
            relative = np.square(errors / usual)
            positions = max(positions, float(np.sqrt(_mean(relative, (1, 2))).max()))
            # Take as many positions at a time, from all over the text, as a check looks at later.
            for first in range(step := max(1, len(relative) // GROUP)):
                layers = max(layers, float(np.sqrt(_mean(relative[first::step], 0)).max()))
        return cls(usual.astype(np.float32), max(positions, 1.0), max(layers, 1.0))

    def score(self, errors: Errors) -> Score:
        """Judge the errors [position, layer, K or V] of a cache.

        Layers are judged only where enough positions were looked at.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            relative = np.square(errors.astype(np.float64) / self.usual.reshape(errors.shape[1:]))
            positions = np.sqrt(_mean(relative, (1, 2))) / self.position
            layers = np.sqrt(_mean(relative, 0)) / self.layer
        if len(errors) < GROUP // 2:
            layers = np.zeros_like(layers)
        return Score(*(np.nan_to_num(a, nan=np.inf, posinf=np.inf).astype(np.float32) for a in (positions, layers)))

    @property
    def record(self) -> SpreadRecord:
        """The form in which files and the pipe hold it; `of` is the inverse."""
        usual = [[int(of * MICRO * 1000) for of in layer] for layer in self.usual.tolist()]
        return SpreadRecord(usual, int(self.position * MICRO), int(self.layer * MICRO))

    @classmethod
    def of(cls, record: SpreadRecord) -> Spread:
        """Restore what `record` gave.  Raises `ValueError` for numbers that are no noise."""
        usual = np.array(record.usual, np.float64) / (MICRO * 1000)
        if usual.ndim != 2 or not (usual > 0).all():
            raise ValueError("noise is a positive number for each tensor of each layer")
        return cls(usual.astype(np.float32), record.position / MICRO, record.layer / MICRO)


@dataclass(frozen=True, slots=True)
class Noise:
    """The honest noise of one model on one machine, for each way of checking.

    `samples`: recomputing sampled positions (V5; None where they cannot be computed one by one); `recompute`:
    recomputing everything (V7); `fingerprints`: comparing fingerprints (V6); `intervals`: recomputing intervals (V5;
    None where positions are sampled instead, whatever the document's length).
    """

    samples: Spread | None
    recompute: Spread
    fingerprints: Spread
    intervals: Spread | None = None

    @property
    def record(self) -> NoiseRecord:
        """The form in which files and the pipe hold it; `of` is the inverse."""
        return NoiseRecord(
            samples=self.samples.record if self.samples else None,
            recompute=self.recompute.record,
            fingerprints=self.fingerprints.record,
            intervals=self.intervals.record if self.intervals else None,
        )

    @classmethod
    def of(cls, record: NoiseRecord) -> Noise:
        """Restore what `record` gave.  Raises `ValueError` for numbers that are no noise."""
        return cls(
            Spread.of(record.samples) if record.samples is not None else None,
            Spread.of(record.recompute),
            Spread.of(record.fingerprints),
            Spread.of(record.intervals) if record.intervals is not None else None,
        )
