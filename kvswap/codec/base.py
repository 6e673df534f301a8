"""The codec contract and the registry.

A chunk's tensors are handed over as *parts*: for each layer K, then V, each an unsigned-integer view
(`uint16` for bfloat16 and float16, `uint32` for float32, `uint8` for q8_0) of shape [heads, tokens, dim].  All parts of
a chunk have the same number of tokens; heads and dim may differ between K and V.  Codecs see bit
patterns, never floats, which is what makes "exact" mean every NaN payload, -0 and denormal.

Contract of a codec:
* `encode` may return anything of any length, or None; the registry stores the chunk as `raw` when
  that is not shorter than the raw bytes.
* `decode` of an exact codec gives every bit back; that of a lossy one gives the same bits to everybody.
* `decode` writes into the given arrays, which may be strided views of a larger cache, and must
  raise `IntegrityError` when the wire bytes do not describe exactly these parts.  It checks every
  declared size against the parts before it allocates, so memory is bounded by the parts' own size.
* Both are pure, re-entrant, and release the GIL in their long steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kvswap.codec.parts import Part, check_parts, raw_length
from kvswap.codec.predictive.context import Context
from kvswap.core.defaults import OPAQUE_DTYPES
from kvswap.core.errors import Incompatible, IntegrityError


class Codec(Protocol):
    """A way of encoding a chunk.  `lossless` codecs are lossless; a lossy one is used only when it is asked for.

    `parts` are the tensors of a chunk as the module describes, `dtype` is that of their values, `context` what
    `predictive` codes against.
    """

    id: str
    lossless: bool

    def encode(self, parts: Sequence[Part], dtype: str, context: Context | None = None) -> bytes | None:
        """Return the wire bytes of these parts; None where the codec cannot encode them."""

    def decode(
        self, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: Context | None = None
    ) -> None:
        """Fill the parts from the wire bytes.

        Raises `IntegrityError` when the bytes do not describe exactly these parts.
        """


PREDICTED = ("predictive", "predictive2")  # the codecs that code against a predictor
_PLANES_MAY_BE_BETTER = 0.6  # part of the raw size from which `planes` is tried as well
_REGISTRY: dict[str, Codec] = {}


def register(codec: Codec) -> None:
    """Add a codec to the registry.  An id is for ever: changed bytes need a new id.

    Raises `ValueError` when the id is taken.
    """
    if codec.id in _REGISTRY:
        raise ValueError(f"codec id {codec.id!r} is taken")
    _REGISTRY[codec.id] = codec


def names() -> list[str]:
    """List the ids of the registered codecs, in order of registration."""
    return list(_REGISTRY)


def get(name: str) -> Codec:
    """Return the codec of this id.  Raises `Incompatible` for an unknown one."""
    try:
        return _REGISTRY[name]
    except KeyError:
        raise Incompatible(
            f"unknown codec {name[:40]!r}",
            cause="the publisher uses a newer kvswap",
            hint=f"this version reads: {', '.join(_REGISTRY)}",
            field="codec",
        ) from None


def encode(parts: Sequence[Part], dtype: str, name: str, context: Context | None = None) -> tuple[str, bytes]:
    """Encode the parts with the named codec, or a simpler one where that is smaller.  Returns (id used, wire bytes).

    What is quantised already stays `raw`.  `predictive` is the codec that the context's predictor is for, it or
    `predictive2`; so is `predictive2`.  Without a context for these layers, and where prediction gains little, `planes`
    is tried and the smaller result taken.  Other codecs are compared with `raw`.  Raises `Incompatible` or
    `IntegrityError` for parts that no codec is specified for.
    """
    check_parts(parts, dtype)
    if dtype in OPAQUE_DTYPES:
        name = "raw"
    raw = raw_length(parts)
    if name in PREDICTED:
        name = context.predictor.codec if context is not None else name
        wire = get(name).encode(parts, dtype, context) if context is not None else None
        if wire is None or len(wire) > _PLANES_MAY_BE_BETTER * raw:
            plainer, other = encode(parts, dtype, "planes")
            return (plainer, other) if wire is None or len(other) <= len(wire) else (name, wire)
        return name, wire
    wire = get(name).encode(parts, dtype)
    if wire is None or (name != "raw" and len(wire) >= raw):
        name, wire = "raw", get("raw").encode(parts, dtype)
    assert wire is not None  # noqa: S101 - `raw` takes everything
    return name, wire


def decode(
    name: str, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: Context | None = None
) -> None:
    """Fill the parts from the wire bytes of the named codec.

    Raises `Incompatible` for an unknown codec or a dtype without one, `IntegrityError` for bytes that do not fit the
    parts.
    """
    check_parts(parts, dtype)
    if dtype in OPAQUE_DTYPES and name != "raw":
        raise IntegrityError(f"a chunk of {dtype} is raw, and not {name[:40]!r}")
    get(name).decode(wire, parts, dtype, context)
