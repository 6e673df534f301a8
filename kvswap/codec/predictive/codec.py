"""Codec `predictive`: of each value only what the layers before it do not say already.

Layer by layer, K then V: predict (`predictor`), then code the value given the prediction (`buckets`,
`rans`), then let the exact value feed the next predictions.  Both ends do the same integer arithmetic
on the same integers, so they predict the same, whatever machine, thread count or backend.

Wire layout (little endian):

    u8   version, 1
    u8   bytes a word, 2 or 4
    u16  0
    u32  words, u32 bytes of runs, u32 bytes of plain bits
    u32 * 128   states of the coder
    u16 * words
    runs, then plain bits

Tensors in the order K, V of each layer; values in the order token, head, dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.base import Part
from kvswap.codec.predictive import fast, plain
from kvswap.codec.predictive.buckets import FORMATS, Format
from kvswap.codec.predictive.predictor import Predictor, Stack, Tensor, Turns
from kvswap.core.errors import Incompatible

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
BACKENDS: dict[str, ModuleType] = {"plain": plain, **({"fast": fast} if fast.AVAILABLE else {})}
BEST = BACKENDS["fast" if fast.AVAILABLE else "plain"]
Coder = Callable[[int, Tensor, Array, Array], Array]  # number of the part, tensor, mu, token factor -> words


@dataclass(frozen=True, slots=True)
class Context:
    """What a chunk is coded against."""

    predictor: Predictor
    stack: Stack
    place: int  # in the stack, of the first layer of the chunk
    before: Sequence[Part]  # K and V of the layers just before it in the stack, of these tokens
    start: int  # position of the first token


@dataclass(frozen=True, slots=True)
class _Known:
    """What a layer gives to those after it."""

    k: Array
    v: Array
    wrong: tuple[Ints | None, Ints | None]


def flat(part: Part) -> Array:
    """[tokens, channels] of [heads, tokens, dim]."""
    return np.ascontiguousarray(part.transpose(1, 0, 2)).reshape(part.shape[1], -1)


def walk(engine: Any, context: Context, heads: int, tokens: int, form: Format, layers: int, code: Coder) -> None:
    """Through the layers before a chunk and those of it; `code` takes or gives the words of each tensor."""
    stack = context.stack
    turns = Turns.of(stack, context.start, tokens)
    straight = turns.none()
    known: list[_Known] = []

    def one(
        number: int, tensor: Tensor, inputs: list[Array], wrong: list[Ints | None], by: Turns
    ) -> tuple[Array, Ints | None]:
        # Of the first layers given as context not all is known that they were predicted from: then how wrong
        # their prediction would have been says nothing.
        whole = sum(i.shape[1] for i in inputs) == len(tensor.weights)
        sums = engine.sums(tensor, inputs) if whole and inputs else None
        mu = engine.expected(tensor, sums, by, heads)
        said = [w for w in wrong if w is not None]
        told = whole and 2 * len(said) + 1 == len(tensor.token)
        factor = tensor.token_factor(said, tokens) if told else np.zeros(tokens, np.int16)
        words = code(number, tensor, mu, factor)
        features, found = engine.known(tensor, words, mu, by, heads, form)
        return features, found if whole else None

    for number in range(-len(context.before), 2 * layers, 2):
        place = context.place + number // 2
        recent = known[: -stack.before - 1 : -1]
        inputs = [t for layer in recent for t in (layer.k, layer.v)]
        wrong = list(known[-1].wrong) if known else []
        k, wrong_k = one(number, stack.k[place], inputs, wrong, turns)
        v, wrong_v = one(number + 1, stack.v[place], [*inputs, k], [wrong_k, *wrong], straight)
        known.append(_Known(k, v, (wrong_k, wrong_v)))


def encode(context: Context, parts: Sequence[Part], dtype: str, engine: Any = BEST) -> bytes:
    """The wire bytes of K, V, K, V ...  Raises `Incompatible` when the predictor is not for these parts."""
    form, layers = FORMATS[dtype], _check(context, parts)
    encoder = engine.Encoder(context.predictor.tables, form)

    def code(number: int, tensor: Tensor, mu: Array, factor: Array) -> Array:
        if number < 0:
            return flat(context.before[number])
        words = flat(parts[number])
        encoder.put(words, mu, tensor, factor)
        return words

    heads, tokens, _ = parts[0].shape
    walk(engine, context, heads, tokens, form, layers, code)
    wire: bytes = encoder.finish()
    return wire


def decode(context: Context, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, engine: Any = BEST) -> None:
    """Fill the parts.  Raises `IntegrityError`, or `Incompatible` as `encode` does."""
    form, layers = FORMATS[dtype], _check(context, parts)
    decoder = engine.Decoder(memoryview(wire), context.predictor.tables, form)

    def code(number: int, tensor: Tensor, mu: Array, factor: Array) -> Array:
        if number < 0:
            return flat(context.before[number])
        words: Array = decoder.get(mu, tensor, factor)
        part = parts[number]
        part[...] = words.reshape(part.shape[1], part.shape[0], part.shape[2]).transpose(1, 0, 2)
        return words

    heads, tokens, _ = parts[0].shape
    walk(engine, context, heads, tokens, form, layers, code)
    decoder.finish()


def _check(context: Context, parts: Sequence[Part]) -> int:
    """The number of layers.  Nothing below looks at a shape again."""
    stack, layers, earlier = context.stack, len(parts) // 2, len(context.before) // 2
    every = [*context.before, *parts]
    fits = 0 < 2 * layers == len(parts) and 2 * earlier == len(context.before) and earlier <= context.place
    fits = fits and context.place + layers <= len(stack.layers) and 0 <= context.start < 1 << 23
    fits = fits and len({(part.shape[0], part.shape[1]) for part in every}) == 1
    for offset in range(-earlier, layers) if fits else ():
        place = context.place + offset
        k, v = every[2 * (offset + earlier) : 2 * (offset + earlier) + 2]
        fits = fits and k.shape[0] * k.shape[2] == len(stack.k[place].mean)
        fits = fits and v.shape[0] * v.shape[2] == len(stack.v[place].mean) and 2 * len(stack.turns) <= k.shape[2]
    if not fits:
        raise Incompatible(
            "the predictor is not for tensors of this shape", cause="it was trained for another model", field="codec"
        )
    return layers


class Predictive:
    """The registered codec: the functions above, with the best backend there is."""

    id = "predictive"
    exact = True

    def encode(self, parts: Sequence[Part], dtype: str, context: Context | None = None) -> bytes:
        return encode(_given(context), parts, dtype)

    def decode(
        self, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: Context | None = None
    ) -> None:
        decode(_given(context), wire, parts, dtype)


def _given(context: Context | None) -> Context:
    if context is None:
        raise Incompatible("a predictive chunk of layers that its predictor does not know", field="codec")
    return context
