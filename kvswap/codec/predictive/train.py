"""Training of a predictor: least squares on integer features, then its errors on parts of the documents.

`Trainer` is fed documents of one stack, in any number: the first few set the scales, all of them the weights, and every
fifth, in part, the scales of error and the tables.  Only those parts are kept, so memory hardly grows with the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.parts import Part
from kvswap.codec.predictive import buckets, codec, memory, plain, rans
from kvswap.codec.predictive.context import Context
from kvswap.codec.predictive.predictor import (
    FEATURE,
    FEATURE_SHIFT,
    SHIFT,
    WRONG,
    Predictor,
    Rotations,
    Stack,
    Tensor,
)
from kvswap.codec.predictive.quantize import LARGEST, quantize
from kvswap.codec.predictive.serial import MOST_LOG_SIGMA, MOST_MISSING
from kvswap.codec.predictive2 import frames
from kvswap.codec.predictive2.tables import StreamTables
from kvswap.core.errors import UsageError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_SCALING = 6  # documents that set the scales
_MEASURING_TOKENS = 768  # tokens measured of every fifth document
_SPREAD = 5.0  # standard deviations that a feature spans
_RIDGE = 1e-4
COARSENESS = 0.05
_OUTLIER = 8.0  # standard deviations to which outliers are clipped
_LARGEST = 2**31 - 1


class Trainer:
    """The training of one stack: `add` documents, then `finish`."""

    def __init__(
        self,
        layers: Sequence[int],
        rotations: Array,
        before: int,
        dtype: str,
        known: Sequence[tuple[Part, Part]] = (),
        coarseness: float = COARSENESS,
    ) -> None:
        """Start the training of the stack of these layers, each predicted from `before` layers before it.

        `rotations`: see `rope.powers`; `known`: the first layer's K and V of the tokens of the token table, each from
        position 0; `coarseness`: a step of a weight, as the part of a channel's usual error by which it moves a
        prediction for a usual feature.
        """
        self._layers = tuple(layers)
        self._rotations = rotations
        self._before = before
        self._form = buckets.FORMATS[dtype]
        self._first: list[list[Part]] = []
        self._kept: list[list[Part]] = []
        self._entries: list[Array | None] = []  # for each document kept: the table entries of its tokens
        self._tensors: list[Tensor] = []
        self._spread: list[Floats] = []
        self._known = known
        self.coarseness = coarseness
        self._memory, self._missing = np.empty((0, 0), np.int16), (0, 0)
        # Sums by tensor: of products of its features with its own and those of the tensors just before it; of its
        # inputs with its values; and of squares of its values.
        self._squares: list[Any] = [0.0] * (2 * len(self._layers))
        self._products: list[Any] = [0.0] * (2 * len(self._layers))
        self._energy: list[Any] = [0.0] * (2 * len(self._layers))
        self._tokens = 0
        self._heads = 0
        self._gathered = 0  # documents

    def add(self, parts: Sequence[Part]) -> None:
        """Add one document: K and V of each layer, from position 0."""
        self._heads = parts[0].shape[0]
        if not self._tensors:
            self._first.append([p.copy() for p in parts])
            if len(self._first) == _SCALING:
                self._begin()
            return
        self._gather(parts)

    def _begin(self) -> None:
        self._set_scales()
        if self._known:
            self._memorize()
        for parts in self._first:
            self._gather(parts)
        self._first.clear()

    def _stack(self) -> Stack:
        k, v = tuple(self._tensors[::2]), tuple(self._tensors[1::2])
        return Stack(self._layers, self._before, self._rotations, k, v, self._memory, self._missing)

    def _straight(self, number: int, part: Part, unit: int) -> Array:
        """Return a part's values in whole units, without the rotation."""
        tokens = part.shape[1]
        rotations = Rotations.of(self._stack(), 0, tokens)
        values = plain.units(codec.flat(part), self._form, unit)
        return values if number % 2 else plain.rotate(values, rotations, self._heads, back=True)

    def _set_scales(self) -> None:
        for number in range(2 * len(self._layers)):
            rows = np.concatenate([self._straight(number, d[number], 16)[4:] for d in self._first]) / 65536.0
            mean, spread = rows.mean(0), np.maximum(rows.std(0), 1e-6)
            unit = int(np.clip(np.ceil(np.log2(256 / np.median(spread))), 4, 20))
            channels = len(mean)
            self._spread.append(spread)
            self._tensors.append(
                Tensor(
                    unit=unit,
                    mean=np.rint(mean * 2.0**unit).astype(np.int32),
                    factor=_positive(2.0**FEATURE_SHIFT * FEATURE / (_SPREAD * spread * 2.0**unit)),
                    weights=np.zeros((0, channels), np.int8),
                    scale=np.zeros(channels, np.int32),
                    log_sigma=np.zeros(channels, np.int16),
                    inverse=np.ones(channels, np.int32),
                    token=np.zeros(1, np.int16),
                )
            )

    def _memorize(self) -> None:
        columns = []
        for number in (0, 1):
            tensor = self._tensors[number]
            rows = [self._straight(number, pair[number], tensor.unit) for pair in self._known]
            columns.append(memory.entries(tensor, np.concatenate(rows)))
            self._replace(number, scale=memory.recall_scale(tensor.factor))
        self._memory = np.concatenate(columns, axis=1)

    def _inputs(self, number: int) -> list[int]:
        """List the tensors that one is predicted from, in the codec's order."""
        if number < 2 and self._known:
            return []
        layer = number // 2
        seen = [2 * (layer - b) + i for b in range(1, self._before + 1) if layer >= b for i in (0, 1)]
        return [*seen, number - 1] if number % 2 else seen

    def _gather(self, parts: Sequence[Part]) -> None:
        """Add up products of features with features, and of features with what they are to predict."""
        tokens = parts[0].shape[1]
        rotations = Rotations.of(self._stack(), 0, tokens)
        features: list[Array] = []
        for number, (tensor, part) in enumerate(zip(self._tensors, parts, strict=True)):
            by = rotations.none() if number % 2 else rotations
            nothing = np.zeros((tokens, len(tensor.mean)), np.int32)
            found, _ = codec.BEST.features(tensor, codec.flat(part), nothing, by, self._heads, self._form)
            features.append(found.astype(np.float32))
            target = (self._straight(number, part, tensor.unit) - tensor.mean).astype(np.float64)
            limit = _OUTLIER * self._spread[number] * 2.0**tensor.unit
            np.clip(target, -limit, limit, out=target)
            recent = np.concatenate(features[self._first_of(number) :], axis=1)
            self._squares[number] += (recent.T @ features[number]).astype(np.float64)
            self._energy[number] += np.square(target).sum(axis=0)
            inputs = self._inputs(number)
            if inputs:
                seen = np.concatenate([features[i] for i in inputs], axis=1)
                self._products[number] += (seen.T @ target.astype(np.float32)).astype(np.float64)
        self._tokens += tokens
        self._gathered += 1
        if self._gathered % 5 == 1:
            kept = [p[:, :_MEASURING_TOKENS].copy() for p in parts]
            entries = memory.find(self._stack(), codec.flat(kept[1]), self._form, codec.BEST) if self._known else None
            self._kept.append(kept)
            self._entries.append(entries)

    def _first_of(self, number: int) -> int:
        """Return the first tensor that is an input wherever this one is the last."""
        return max(0, number - 2 * self._before)

    def _square(self, inputs: Sequence[int]) -> Floats:
        """Return the sum of products of the inputs' features with each other."""
        widths = [len(t.mean) for t in self._tensors]
        ends = np.cumsum([0, *(widths[i] for i in inputs)])
        out = np.zeros((ends[-1], ends[-1]))
        for a, i in enumerate(inputs):
            for b, j in enumerate(inputs):
                if j <= i:
                    row = sum(widths[self._first_of(i) : j])
                    block = self._squares[i][row : row + widths[j]]
                    out[ends[b] : ends[b + 1], ends[a] : ends[a + 1]] = block
                    out[ends[a] : ends[a + 1], ends[b] : ends[b + 1]] = block.T
        return out

    def finish(self, codec: str = "predictive2") -> tuple[Stack, Array]:
        """Return the stack, and counts of symbols by context for the tables of a codec, `predictive2` or `predictive`.

        Raises `UsageError` without documents.
        """
        if not self._tensors:
            if not self._first:
                raise UsageError("there is nothing to train on", cause="the corpus has no text", hint="--corpus DIR")
            self._begin()
        for number in range(len(self._tensors)):
            if self._inputs(number):
                self._set_weights(number)
        deviations = self._deviations()  # of fixed predictions: the next steps only estimate their errors
        self._set_error_scales(deviations)
        self._set_token_factors(deviations)
        return self._stack(), self._counts() if codec == "predictive" else self._stream_counts()

    def _counts(self) -> Array:
        counts = np.zeros((buckets.CONTEXTS, rans.SYMBOLS))
        for number, words, mu, factor in self._measure():
            tensor = self._tensors[number]
            sigma = plain.log_sigma(tensor, factor)
            frame = buckets.Frame.of(self._form, mu.astype(np.int64), sigma, tensor.unit)
            symbol = buckets.split(words, frame).symbol
            np.add.at(counts, (frame.context.reshape(-1), symbol.reshape(-1)), 1)
        return counts

    def _stream_counts(self) -> Array:
        """Count for `predictive2`, whose predictions differ from these in their last bits only."""
        counts = np.zeros((frames.CONTEXTS, frames.SYMBOLS))
        every = np.ones(counts.shape, np.uint32)
        for number, words, mu, factor in self._measure():
            tensor = self._tensors[number]
            sigma = plain.log_sigma(tensor, factor).astype(np.int32)
            frame = frames.BucketFrame.of(self._form, (mu * 2.0**-tensor.unit).astype(np.float32), sigma)
            entry = frame.context * frames.SYMBOLS + frames.split(words, frame, every).symbol
            counts += np.bincount(entry.reshape(-1), minlength=counts.size).reshape(counts.shape)
        return counts

    def _set_weights(self, number: int) -> None:
        square = self._square(self._inputs(number))
        square += np.eye(len(square)) * (np.trace(square) / len(square) * _RIDGE + 1e-9)
        product = self._products[number]
        weights = np.linalg.solve(square, product)
        error = np.sqrt(np.maximum(self._energy[number] - (weights * product).sum(0), 1.0) / self._tokens)
        step = np.maximum(self.coarseness * error * _SPREAD / FEATURE, np.abs(weights).max(0) / LARGEST)
        step = np.maximum(step, 1e-12)
        self._replace(number, weights=quantize(square, weights, step), scale=_positive(step * 2.0**SHIFT))

    def _replace(self, number: int, **fields: Array) -> None:
        tensor = self._tensors[number]
        names = ("unit", "mean", "factor", "weights", "scale", "log_sigma", "inverse", "token")
        self._tensors[number] = Tensor(**{name: fields.get(name, getattr(tensor, name)) for name in names})

    def _measure(self) -> list[tuple[int, Array, Array, Array]]:
        """Return (number, words, mu, token factor) of every tensor of the documents kept."""
        out: list[tuple[int, Array, Array, Array]] = []
        stack = self._stack()
        nothing = Predictor((stack,), rans.FrequencyTables.flat(buckets.CONTEXTS))
        for parts, entries in zip(self._kept, self._entries, strict=True):

            def code(number: int, tensor: Tensor, mu: Array, factor: Array, parts: list[Part] = parts) -> Array:
                words = codec.flat(parts[number])
                out.append((number, words, mu, factor))
                return words

            context = Context(nothing, stack, 0, [], 0)
            shape = (self._heads, parts[0].shape[1])
            codec.walk(codec.BEST, context, shape, self._form, len(self._layers), code, entries)
        return out

    def _deviations(self) -> list[Array]:
        rows: list[list[Array]] = [[] for _ in self._tensors]
        for number, words, mu, _ in self._measure():
            rows[number].append(plain.units(words, self._form, self._tensors[number].unit) - mu)
        return [np.concatenate(r) for r in rows]

    def _set_error_scales(self, deviations: Sequence[Array]) -> None:
        held = np.concatenate([e > 0 for e in self._entries if e is not None]) if self._known else np.empty(0, bool)
        missing = [0, 0]
        for number, rows in enumerate(deviations):
            sigma = _usual(rows)
            if number < 2 and held.any():
                sigma = _usual(rows[held])
                if not held.all():
                    missing[number] = round(4 * float(np.log2(_usual(rows[~held]) / sigma).mean()))
            self._replace(
                number,
                log_sigma=_bounded(4 * (np.log2(sigma) - self._tensors[number].unit), MOST_LOG_SIGMA),
                inverse=_positive(65536 * WRONG / sigma),
            )
        self._missing = (min(missing[0], MOST_MISSING), min(missing[1], MOST_MISSING))

    def _set_token_factors(self, deviations: Sequence[Array]) -> None:
        wrong = [
            plain.wrongness(rows, tensor).astype(np.float64)
            for rows, tensor in zip(deviations, self._tensors, strict=True)
        ]
        usual = [round(float(np.median(w))) for w in wrong]
        for number in range(len(self._tensors)):
            layer = number // 2
            by = ([number - 1] if number % 2 else []) + ([2 * layer - 2, 2 * layer - 1] if layer else [])
            if number < 2 and self._known:
                continue
            if not by:
                continue
            columns = np.stack([*(wrong[i] - usual[i] for i in by), np.ones(len(wrong[number]))], axis=1)
            target = wrong[number] - wrong[number].mean()
            weights = np.linalg.solve(columns.T @ columns + np.eye(columns.shape[1]), columns.T @ target)
            pairs = [x for i, w in zip(by, weights, strict=False) for x in (round(16 * w), usual[i])]
            self._replace(number, token=np.array([*pairs, round(16 * weights[-1])], np.int16))


def _usual(deviations: Array) -> Floats:
    """Estimate sigma of each channel, [channels], from deviations that are about normal, with a few outliers."""
    size = np.abs(deviations).astype(np.float64)
    sigma = np.minimum(size, _OUTLIER * (np.median(size, axis=0) + 1)).mean(0) * np.sqrt(np.pi / 2)
    out: Floats = np.maximum(sigma, 0.5)
    return out


def _positive(values: Floats) -> Array:
    return np.clip(np.rint(values), 1, _LARGEST).astype(np.int32)


def _bounded(values: Floats, most: int) -> Array:
    return np.clip(np.floor(values + 0.5), -most, most).astype(np.int16)


def predictor(stacks: Sequence[Stack], counts: Sequence[Array]) -> Predictor:
    """Join stacks into a predictor, with tables from the sum of their counts, for the codec that these are of."""
    total = sum(counts[1:], start=counts[0])
    if total.shape == (frames.CONTEXTS, frames.SYMBOLS):
        return Predictor(tuple(stacks), StreamTables.of_counts(total))
    return Predictor(tuple(stacks), rans.FrequencyTables(rans.normalized(total)))
