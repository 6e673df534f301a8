"""The plan of a chunk: in which order its tensors are coded, and what each is predicted from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.parts import Part
from kvswap.codec.predictive.buckets import FORMATS, Format
from kvswap.codec.predictive.context import Context
from kvswap.codec.predictive.predictor import FEATURE_SHIFT, SHIFT, Rotations, Stack, Tensor
from kvswap.codec.predictive.rope import TURN
from kvswap.codec.predictive2.tables import StreamTables

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

BY_MEAN, BY_SUMS, BY_TABLE = range(3)
SLICE_LOG = 5  # a stream has 32 tokens of a head
LANES = 32


@dataclass(frozen=True, slots=True)
class Constants:
    """The numbers of a tensor in float32, [channels]: an integer of its predictor times a power of two each."""

    mean: Floats
    scale: Floats
    feature: Floats
    inverse: Floats

    @classmethod
    def of(cls, tensor: Tensor) -> Constants:
        """Compute them once for each tensor."""
        if "constants" not in tensor.prepared:
            unit = tensor.unit

            def times(numbers: Array, power: int) -> Floats:
                return numbers.astype(np.float32) * np.float32(2.0**power)

            tensor.prepared["constants"] = cls(
                mean=times(tensor.mean, -unit),
                scale=times(tensor.scale, -SHIFT - unit),
                feature=times(tensor.factor, unit - FEATURE_SHIFT),
                inverse=times(tensor.inverse, unit - 16),
            )
        out: Constants = tensor.prepared["constants"]
        return out


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of a chunk, or of the layers just before it."""

    tensor: Tensor
    words: Part  # [head, token, dim]
    given: bool  # one of the layers before the chunk: known, not coded
    rotated: bool
    mode: int  # what it is predicted by
    inputs: tuple[int, ...]  # steps whose features its sums are of, in the order of the weights
    sources: tuple[int, ...] | None  # steps whose errors its token factor follows from; None: the factor is 0


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """A chunk's steps in order, and what they share."""

    form: Format
    stack: Stack
    tables: StreamTables
    heads: int
    tokens: int
    cosine: Floats  # [tokens, pairs]
    sine: Floats
    steps: tuple[PlannedTensor, ...]

    @property
    def kind(self) -> int:
        """The number of the format, as chunks name it."""
        return list(FORMATS.values()).index(self.form)

    @property
    def has_table(self) -> bool:
        """True if the chunk begins with a layer that the token table is for."""
        return self.steps[0].mode == BY_TABLE

    @property
    def slices(self) -> int:
        """The number of slices of tokens as `encode` cuts them."""
        return -(-self.tokens >> SLICE_LOG)


def plan_of(context: Context, before: Sequence[Part], parts: Sequence[Part], form: Format) -> ChunkPlan:
    """Plan a chunk whose shapes fit the context's predictor; `before` and `parts` are words of `form`."""
    stack, earlier = context.stack, len(before) // 2
    heads, tokens, _ = parts[0].shape
    turns = Rotations.of(stack, context.start, tokens)
    steps: list[PlannedTensor] = []
    sound: list[bool] = []  # whether the error of each step's prediction says something
    for number, words in enumerate([*before, *parts]):
        layer, value = number // 2, number % 2
        place = context.place - earlier + layer
        wanted = min(stack.before, place)
        inputs = [2 * (layer - b) + i for b in range(1, wanted + 1) for i in (0, 1)] + value * [number - 1]
        whole, given = wanted <= layer, layer < earlier
        sources = value * [number - 1] + ([2 * layer - 2, 2 * layer - 1] if layer else [])
        tensor = (stack.v if value else stack.k)[place]
        if place == 0 and len(stack.memory):
            mode, inputs, sources = BY_TABLE, [], []
        else:
            mode = BY_SUMS if whole and inputs else BY_MEAN
        if given:
            mode = BY_MEAN
        factored = whole and all(sound[s] for s in sources) and len(tensor.token) == 2 * len(sources) + 1
        steps.append(
            PlannedTensor(
                tensor,
                words,
                given,
                value == 0,
                mode,
                tuple(inputs) if mode == BY_SUMS else (),
                tuple(sources) if factored and not given else None,
            )
        )
        sound.append(whole and not given)
    tables = context.predictor.tables
    assert isinstance(tables, StreamTables)  # noqa: S101 - the codec has looked
    cosine, sine = (a.astype(np.float32) * np.float32(2.0**-TURN) for a in (turns.cos, turns.sin))
    return ChunkPlan(form, stack, tables, heads, tokens, cosine, sine, tuple(steps))
