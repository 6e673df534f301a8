"""Quantisation of real weights to small integers, coarse where it costs little.

The weights are rounded one feature after another, each making up for the errors of those before it (OPTQ, arXiv
2210.17323, in the form of arXiv 2307.13304): weights of three to five bits predict as well as rounded ones of seven.
Their file is entropy-coded, so small numbers take few bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

LARGEST = 63  # so that any two stay below what `predictive2` takes together
_ROWS = 64  # features at a time


def quantize(square: Floats, weights: Floats, step: Floats) -> Array:
    """Quantise weights to int8 [features, channels], in multiples of each channel's `step`.

    `square`: the sum of products of features with features, [features, features].
    """
    lower = np.linalg.cholesky(square)
    lower /= np.diag(lower)  # unit diagonal: the part of an error that each feature before it makes up for
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
