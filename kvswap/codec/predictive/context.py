"""What a chunk is coded against: the layers just before it, and the predictor that says what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvswap.codec.parts import Part
from kvswap.codec.predictive.predictor import Predictor, Stack


@dataclass(frozen=True, slots=True)
class Context:
    """The data that a chunk is coded against.

    `place`: the place in the stack of the chunk's first layer; `before`: K and V of the layers just before it in the
    stack, for the same tokens; `start`: position of the first token.
    """

    predictor: Predictor
    stack: Stack
    place: int  # in the stack, of the first layer of the chunk
    before: Sequence[Part]  # K and V of the layers just before it in the stack, of these tokens
    start: int  # position of the first token
