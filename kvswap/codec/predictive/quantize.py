"""Real weights to whole numbers, coarse where it costs little.

Rounded one feature after another, each making up for the errors of those before it (OPTQ, arXiv
2210.17323, in the form of arXiv 2307.13304): weights of three to five bits predict as well as rounded
ones of seven.  Their file is entropy-coded, so small numbers are short ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

LARGEST = 127
_ROWS = 64  # at once


def quantize(square: Floats, weights: Floats, step: Floats) -> Array:
    """int8 [features, channels], in steps of each channel; `square`: products of features with features, summed."""
    lower = np.linalg.cholesky(square)
    lower /= np.diag(lower)  # unit diagonal: of an error, what it asks of the features before it
    errors = np.zeros_like(weights)
    out = np.zeros(weights.shape, np.int8)
    for end in range(len(weights), 0, -_ROWS):
        begin = max(0, end - _ROWS)
        wanted = weights[begin:end] + lower[end:, begin:end].T @ errors[end:]
        for row in range(end - 1, begin - 1, -1):
            ideal = wanted[row - begin] + lower[row + 1 : end, row] @ errors[row + 1 : end]
            whole = np.clip(np.rint(ideal / step), -LARGEST, LARGEST)
            errors[row] = weights[row] - whole * step
            out[row] = whole
    return out
