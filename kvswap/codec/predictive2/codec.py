"""The codec `predictive2`: each value is coded against its prediction from the layers before it.

It says what `predictive` says, in another stream: 32 states for each 32 tokens of a head, raw bits inside the states,
predictions in float32 with every operation rounded by itself.  So it is two to three times as fast on a processor, and
a GPU can decode the streams of a chunk side by side.  `manifests/FORMAT.md` has every rounding, order and bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from kvswap.codec.parts import Part, narrowed, widened
from kvswap.codec.predictive import codec as first
from kvswap.codec.predictive import memory
from kvswap.codec.predictive.buckets import FORMATS
from kvswap.codec.predictive.context import Context
from kvswap.codec.predictive2 import fast, plain
from kvswap.codec.predictive2.plan import plan_of
from kvswap.codec.predictive2.tables import StreamTables
from kvswap.core.errors import Incompatible, IntegrityError

BACKENDS: dict[str, ModuleType] = {"plain": plain, **({"fast": fast} if fast.AVAILABLE else {})}
BEST = BACKENDS["fast" if fast.AVAILABLE else "plain"]


def encode(context: Context, parts: Sequence[Part], dtype: str, backend: Any = BEST) -> bytes:
    """Encode K, V, K, V ... of consecutive layers into wire bytes.

    Raises `Incompatible` for tensors or a codec that the predictor was not made for.
    """
    _check(context, parts)
    dtype, (before, words) = first.narrowest(dtype, context.before, parts)
    plan = plan_of(context, before, words, FORMATS[dtype])
    entries = memory.find(plan.stack, first.flat(words[1]), plan.form, first.BEST) if plan.has_table else None
    wire: bytes = backend.encode(plan, entries)
    return wire


def decode(context: Context, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, backend: Any = BEST) -> None:
    """Fill the parts from the wire bytes.  Raises `IntegrityError`, or `Incompatible` as `encode` does."""
    _check(context, parts)
    data = memoryview(wire)
    kind = data[1] if len(data) > 1 else len(FORMATS)
    if kind >= len(FORMATS):
        raise IntegrityError("a predictive2 chunk has an unknown version, format or shape of streams")
    coded = list(FORMATS)[kind]
    if coded != dtype and dtype != "float32":
        raise IntegrityError("a predictive2 chunk is of another dtype")
    known = narrowed(context.before, coded) if coded != dtype else context.before
    if known is None:
        raise IntegrityError("a predictive2 chunk is coded against values of another format than it is of")
    words = parts if coded == dtype else [_scratch(part) for part in parts]
    backend.decode(plan_of(context, known, words, FORMATS[coded]), data)
    if coded != dtype:
        for part, narrow in zip(parts, words, strict=True):
            part[...] = widened(narrow, coded)


def _scratch(part: Part) -> Part:
    return part.astype("u2")  # its values do not matter


def _check(context: Context, parts: Sequence[Part]) -> None:
    first.check_shapes(context, parts)
    if not isinstance(context.predictor.tables, StreamTables):
        raise Incompatible(
            "the predictor is for the codec predictive, not for predictive2",
            cause="it was trained by an older kvswap",
            hint="kvswap codec train --corpus DIR",
            field="codec",
        )


class Predictive2:
    """The registered codec `predictive2`, with the fastest form that is available."""

    id = "predictive2"
    lossless = True

    def encode(self, parts: Sequence[Part], dtype: str, context: Context | None = None) -> bytes:
        """Return the wire bytes of the parts.  Raises `Incompatible` without a context."""
        return encode(first.given(context), parts, dtype)

    def decode(
        self, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: Context | None = None
    ) -> None:
        """Fill the parts from the wire bytes.  Raises `Incompatible` without a context, or `IntegrityError`."""
        decode(first.given(context), wire, parts, dtype)
