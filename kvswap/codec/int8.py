"""Codecs `int8` and `int8-channel`: a symmetric scale and one byte per value.  LOSSY: other bits come back.

This is the paper's comparison (arXiv 2606.13361): half the size, and other answers.  It is here to be compared with,
and for users who ask for it; nothing chooses it by itself.  There is a scale for each tensor of the chunk, or for each
channel of it.  q = round(x / scale), scale = max |x| / 127; the decoded value is q * scale, rounded once to float32 and
once to the dtype, so all readers get the same bits.

Wire layout (little endian):

    u8   version, 1
    u8   0: a scale a tensor, 1: a scale a channel
    u16  0
    f32 * scales   in part (, head, dim) order
    i8 * values    in part, head, token, dim order
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.codec.parts import Part, widened
from kvswap.core.errors import IntegrityError

_HEADER = struct.Struct("<BBH")
_VERSION = 1
_LARGEST = 127
_Floats = npt.NDArray[np.float32]


class Int8:
    """The lossy codec of one byte per value.

    With `by_channel` there is a scale for each channel instead of one for each tensor.
    """

    lossless = False

    def __init__(self, by_channel: bool) -> None:
        self.id = "int8-channel" if by_channel else "int8"
        self._by_channel = by_channel

    def _scales(self, part: Part) -> tuple[int, int, int]:
        return (part.shape[0], 1, part.shape[2]) if self._by_channel else (1, 1, 1)

    def encode(self, parts: Sequence[Part], dtype: str, context: object = None) -> bytes | None:
        """Return the wire bytes; None where a value is infinite or not a number."""
        scales: list[bytes] = []
        values: list[bytes] = []
        for part in parts:
            floats = _floats(part, dtype)
            if not np.isfinite(floats).all():
                return None
            axes = (1,) if self._by_channel else (0, 1, 2)
            scale = (np.abs(floats).max(axis=axes, keepdims=True, initial=0) / np.float32(_LARGEST)).astype("<f4")
            whole = np.divide(floats, scale, out=np.zeros_like(floats), where=scale > 0)
            scales.append(scale.tobytes())
            values.append(np.clip(np.rint(whole), -_LARGEST, _LARGEST).astype(np.int8).tobytes())
        return b"".join([_HEADER.pack(_VERSION, self._by_channel, 0), *scales, *values])

    def decode(self, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: object = None) -> None:
        """Fill the parts from the wire bytes.  Raises `IntegrityError` for bytes that do not fit them."""
        sizes = [int(np.prod(self._scales(part))) for part in parts]
        if len(wire) != _HEADER.size + 4 * sum(sizes) + sum(part.size for part in parts):
            raise IntegrityError(f"an {self.id} chunk has a wrong length")
        if _HEADER.unpack_from(wire) != (_VERSION, self._by_channel, 0):
            raise IntegrityError(f"an {self.id} chunk has an unknown version or form")
        scales = np.frombuffer(wire, "<f4", sum(sizes), _HEADER.size)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise IntegrityError(f"an {self.id} chunk has a scale that is none")
        at, first = _HEADER.size + 4 * sum(sizes), 0
        for part, size in zip(parts, sizes, strict=True):
            whole = np.frombuffer(wire, np.int8, part.size, at).reshape(part.shape).astype(np.float32)
            part[...] = _words(whole * scales[first : first + size].reshape(self._scales(part)), dtype)
            at, first = at + part.size, first + size


def _floats(part: Part, dtype: str) -> _Floats:
    words = np.ascontiguousarray(part) if dtype == "float32" else widened(part, dtype)
    return words.view(np.float32)


def _words(floats: _Floats, dtype: str) -> npt.NDArray[Any]:
    """Round float32 values to the dtype, to the nearest, ties to even, and return their bit patterns."""
    if dtype == "float32":
        return floats.view(np.uint32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return floats.astype(np.float16).view(np.uint16)
    words = floats.view(np.uint32)
    return ((words + 0x7FFF + (words >> 16 & 1)) >> 16).astype(np.uint16)
