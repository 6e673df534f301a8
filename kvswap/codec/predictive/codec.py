"""Codec `predictive`: each value is coded against its prediction from the layers before it.

Layer by layer, K then V: predict (`predictor`), then code the value given the prediction (`buckets`, `rans`), then let
the exact value feed the next predictions.  Both ends do the same integer arithmetic on the same integers, so they
predict the same, whatever the machine, thread count or backend.

Wire layout (little endian):

    u8   version, 1
    u8   format of the values: 0 bfloat16, 1 float16, 2 float32
    u16  tokens with an entry of the token table, or without: all of them, or 0 where there is no table
    u32  words, u32 bytes of runs, u32 bytes of plain bits
    u16 * tokens   entries, from 1; 0 for none
    u32 * 128   states of the coder
    u16 * words
    runs, then plain bits

Tensors in the order K, V of each layer; values in the order token, head, dim.  Tensors of float32 whose values, and
those that they are coded against, are all bfloat16 or all float16 are coded as such.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.parts import Part, narrowed, widened
from kvswap.codec.predictive import fast, memory, plain
from kvswap.codec.predictive.buckets import FORMATS, Format
from kvswap.codec.predictive.context import Context
from kvswap.codec.predictive.predictor import Rotations, Stack, Tensor
from kvswap.codec.predictive.rans import FrequencyTables
from kvswap.core.errors import Incompatible, IntegrityError

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
BACKENDS: dict[str, ModuleType] = {"plain": plain, **({"fast": fast} if fast.AVAILABLE else {})}
BEST = BACKENDS["fast" if fast.AVAILABLE else "plain"]
Coder = Callable[[int, Tensor, Array, Array], Array]  # number of the part, tensor, mu, token factor -> words


@dataclass(frozen=True, slots=True)
class _DecodedLayer:
    """The features and prediction errors of a layer, from which the layers after it are predicted."""

    k: Array
    v: Array
    wrong: tuple[Ints | None, Ints | None]


def flat(part: Part) -> Array:
    """Transpose a part [heads, tokens, dim] to [tokens, channels]."""
    return np.ascontiguousarray(part.transpose(1, 0, 2)).reshape(part.shape[1], -1)


def walk(
    backend: Any,
    context: Context,
    shape: tuple[int, int],
    form: Format,
    layers: int,
    code: Coder,
    entries: Array | None = None,
) -> None:
    """Walk through the layers before a chunk and those of it, and call `code` for each tensor with its prediction.

    `code` returns the tensor's words, which it encodes or decodes.  `shape` is (heads, tokens); `layers` counts those
    of the chunk; `entries` of the token table are given where the chunk begins with the first layer.
    """
    heads, tokens = shape
    stack = context.stack
    rotations = Rotations.of(stack, context.start, tokens)
    straight = rotations.none()
    known: list[_DecodedLayer] = []

    def one(
        number: int, tensor: Tensor, inputs: list[Array], wrong: list[Ints | None], by: Rotations
    ) -> tuple[Array, Ints | None]:
        # For the first layers given as context not everything is known that they were predicted from: then the error
        # of their prediction says nothing.
        place = context.place + number // 2
        if recalls(stack, place):
            whole, inputs = entries is not None, []
        else:
            whole = sum(i.shape[1] for i in inputs) == len(tensor.weights)
        present = [w for w in wrong if w is not None]
        factored = whole and 2 * len(present) + 1 == len(tensor.token)
        factor = tensor.token_factor(present, tokens) if factored else np.zeros(tokens, np.int16)
        sums: Array | None = backend.sums(tensor, inputs) if whole and inputs else None
        if entries is not None and recalls(stack, place):
            sums, factor = memory.rows(stack, entries, number), memory.unsure(stack, entries, number)
        mu = backend.expected(tensor, sums, by, heads)
        words = code(number, tensor, mu, factor)
        features, found = backend.features(tensor, words, mu, by, heads, form)
        return features, found if whole else None

    for number in range(-len(context.before), 2 * layers, 2):
        place = context.place + number // 2
        recent = known[: -stack.before - 1 : -1]
        inputs = [t for layer in recent for t in (layer.k, layer.v)]
        wrong = list(known[-1].wrong) if known else []
        k, wrong_k = one(number, stack.k[place], inputs, wrong, rotations)
        v, wrong_v = one(number + 1, stack.v[place], [*inputs, k], [wrong_k, *wrong], straight)
        known.append(_DecodedLayer(k, v, (wrong_k, wrong_v)))


def recalls(stack: Stack, place: int) -> bool:
    """Return True if the layer at this place of the stack is predicted from the token table."""
    return place == 0 and len(stack.memory) > 0


def encode(context: Context, parts: Sequence[Part], dtype: str, backend: Any = BEST) -> bytes:
    """Encode K, V, K, V ... of consecutive layers into wire bytes.

    Raises `Incompatible` when the predictor is for tensors of another shape.
    """
    layers = check_shapes(context, parts)
    dtype, (before, parts) = narrowest(dtype, context.before, parts)
    form = FORMATS[dtype]
    words = [flat(part) for part in parts]
    token_table = recalls(context.stack, context.place)
    entries = memory.find(context.stack, words[1], form, backend) if token_table else None
    encoder = backend.Encoder(_tables(context), form)

    def code(number: int, tensor: Tensor, mu: Array, factor: Array) -> Array:
        if number < 0:
            return flat(before[number])
        encoder.put(words[number], mu, tensor, factor)
        return words[number]

    heads, tokens, _ = parts[0].shape
    walk(backend, context, (heads, tokens), form, layers, code, entries)
    wire: bytes = encoder.finish(entries)
    return wire


def decode(context: Context, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, backend: Any = BEST) -> None:
    """Fill the parts from the wire bytes.  Raises `IntegrityError`, or `Incompatible` as `encode` does."""
    layers, tables = check_shapes(context, parts), _tables(context)
    stream = plain.parse(memoryview(wire))
    heads, tokens, _ = parts[0].shape
    if len(stream.entries) != (tokens if recalls(context.stack, context.place) else 0):
        raise IntegrityError("a predictive chunk does not say which of its tokens the memory holds")
    entries = stream.entries if len(stream.entries) else None
    if entries is not None and int(entries.max()) > len(context.stack.memory):
        raise IntegrityError("a predictive chunk names an entry that the memory does not have")
    coded = stream.dtype
    if coded != dtype and dtype != "float32":
        raise IntegrityError("a predictive chunk is of another dtype")
    known = narrowed(context.before, coded) if coded != dtype else context.before
    if known is None:
        raise IntegrityError("a predictive chunk is coded against values of another format than it is of")
    before: Sequence[Part] = known
    form = FORMATS[coded]
    decoder = backend.Decoder(stream, tables, form)

    def code(number: int, tensor: Tensor, mu: Array, factor: Array) -> Array:
        if number < 0:
            return flat(before[number])
        words: Array = decoder.get(mu, tensor, factor)
        part = parts[number]
        shaped = words.reshape(part.shape[1], part.shape[0], part.shape[2]).transpose(1, 0, 2)
        part[...] = shaped if coded == dtype else widened(shaped, coded)
        return words

    walk(backend, context, (heads, tokens), form, layers, code, entries)
    decoder.finish()


def narrowest(dtype: str, *several: Sequence[Part]) -> tuple[str, Sequence[Sequence[Part]]]:
    """Return the narrowest format that holds every value of the parts, and the parts in it."""
    for narrow in ("bfloat16", "float16") if dtype == "float32" else ():
        found = [narrowed(parts, narrow) for parts in several]
        if all(parts is not None for parts in found):
            return narrow, [parts for parts in found if parts is not None]
    return dtype, several


def check_shapes(context: Context, parts: Sequence[Part]) -> int:
    """Check the shapes of a chunk and its context, and return the number of layers.

    Nothing below looks at a shape again.
    """
    stack, layers, earlier = context.stack, len(parts) // 2, len(context.before) // 2
    every = [*context.before, *parts]
    fits = 0 < 2 * layers == len(parts) and 2 * earlier == len(context.before) and earlier <= context.place
    fits = fits and context.place + layers <= len(stack.layers) and 0 <= context.start < 1 << 23
    fits = fits and len({(part.shape[0], part.shape[1]) for part in every}) == 1
    for offset in range(-earlier, layers) if fits else ():
        place = context.place + offset
        k, v = every[2 * (offset + earlier) : 2 * (offset + earlier) + 2]
        fits = fits and k.shape[0] * k.shape[2] == len(stack.k[place].mean)
        fits = fits and v.shape[0] * v.shape[2] == len(stack.v[place].mean) and 2 * len(stack.rotations) <= k.shape[2]
    if not fits:
        raise Incompatible(
            "the predictor is not for tensors of this shape", cause="it was trained for another model", field="codec"
        )
    return layers


def _tables(context: Context) -> FrequencyTables:
    tables = context.predictor.tables
    if not isinstance(tables, FrequencyTables):
        raise Incompatible(
            "the predictor is for the codec predictive2, not for predictive",
            cause="it was trained by this kvswap, which writes predictive2",
            hint="kvswap publish --codec predictive2",
            field="codec",
        )
    return tables


class Predictive:
    """The registered codec `predictive`, with the fastest backend that is available."""

    id = "predictive"
    lossless = True

    def encode(self, parts: Sequence[Part], dtype: str, context: Context | None = None) -> bytes:
        """Return the wire bytes of the parts.  Raises `Incompatible` without a context."""
        return encode(given(context), parts, dtype)

    def decode(
        self, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: Context | None = None
    ) -> None:
        """Fill the parts from the wire bytes.  Raises `Incompatible` without a context, or `IntegrityError`."""
        decode(given(context), wire, parts, dtype)


def given(context: Context | None) -> Context:
    """Return the context.  Raises `Incompatible` where there is none."""
    if context is None:
        raise Incompatible("a predictive chunk of layers that its predictor does not know", field="codec")
    return context
