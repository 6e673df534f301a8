"""The argument under which a model takes its cache: `past_key_values`, and `cache_params` of models of states alone."""

from __future__ import annotations

import inspect
from functools import cache as remembered
from typing import Any

USUAL = "past_key_values"
"""The argument of nearly all models."""
OF_STATES = "cache_params"
"""The argument of Mamba's classes, which take the same kind of cache."""


def cache_argument(model: Any) -> str:
    """Return the name of the argument under which the forward function of a model takes its cache."""
    kind: Any = type(model)
    return _argument(kind)


@remembered
def _argument(kind: Any) -> str:
    takes = inspect.signature(kind.forward).parameters
    return OF_STATES if OF_STATES in takes and USUAL not in takes else USUAL


def cache_of(model: Any, cache: Any) -> dict[str, Any]:
    """Return a cache as the keyword argument of a model's forward function."""
    return {cache_argument(model): cache}
