"""Codec `raw`: the parts' little-endian bytes, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvswap.codec.parts import Part, raw_length
from kvswap.core.errors import IntegrityError


class Raw:
    """The codec without coding: the yardstick, and the fall-back where coding does not help."""

    id = "raw"
    lossless = True

    def encode(self, parts: Sequence[Part], dtype: str, context: object = None) -> bytes:
        """Return the wire bytes, which have the length of the parts."""
        return b"".join(np.ascontiguousarray(p, dtype=p.dtype.newbyteorder("<")).tobytes() for p in parts)

    def decode(self, wire: bytes | memoryview, parts: Sequence[Part], dtype: str, context: object = None) -> None:
        """Fill the parts from the wire bytes.  Raises `IntegrityError` for another length."""
        if len(wire) != raw_length(parts):
            raise IntegrityError(f"raw chunk has {len(wire)} bytes where {raw_length(parts)} were signed")
        offset = 0
        for part in parts:
            words = np.frombuffer(wire, part.dtype.newbyteorder("<"), part.size, offset)
            part[...] = words.reshape(part.shape)
            offset += part.nbytes
