"""What codecs code: for each layer K, then V, as bit patterns in unsigned integers (see `base`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvswap.core.errors import Incompatible, IntegrityError

Part = npt.NDArray[np.unsignedinteger[Any]]

WORD: dict[str, type[np.unsignedinteger[Any]]] = {
    "bfloat16": np.uint16,
    "float16": np.uint16,
    "float32": np.uint32,
    "q8_0": np.uint8,
}


def raw_length(parts: Sequence[Part]) -> int:
    """Return the bytes of the parts without any coding."""
    return sum(part.nbytes for part in parts)


def narrowed(parts: Sequence[Part], narrow: str) -> list[Part] | None:
    """Convert float32 parts to bfloat16 or float16; None unless `widened` gives every bit back."""
    out: list[Part] = []
    words: npt.NDArray[Any]
    for part in parts:
        if narrow == "bfloat16":
            words = (part >> 16).astype(np.uint16)
        else:
            with np.errstate(over="ignore", under="ignore", invalid="ignore"):
                words = part.view(np.float32).astype(np.float16).view(np.uint16)
        if not np.array_equal(widened(words, narrow), part):
            return None
        out.append(words)
    return out


def widened(words: npt.NDArray[Any], narrow: str) -> Part:
    """Convert bit patterns of bfloat16 or float16 to those of float32."""
    out: Part
    if narrow == "bfloat16":
        out = np.left_shift(words, 16, dtype=np.uint32)
    else:
        with np.errstate(invalid="ignore"):
            out = np.ascontiguousarray(words).view(np.float16).astype(np.float32).view(np.uint32)
    return out


def check_parts(parts: Sequence[Part], dtype: str) -> None:
    """Raise an error for parts that no codec is specified for.

    `Incompatible` for the dtype, `IntegrityError` for a shape that is not [heads, tokens, dim].
    """
    word = WORD.get(dtype)
    if word is None:
        raise Incompatible(f"dtype {dtype!r} has no codec", field="dtype")
    for part in parts:
        if part.ndim != 3 or part.dtype != word or part.shape[1] != parts[0].shape[1]:
            raise IntegrityError(f"a part of shape {part.shape} and type {part.dtype} is not a [head, token, dim] view")
