"""Names of verbs as they were: they work, with a DeprecationWarning, until the next version."""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

NAMES = {
    "artifacts": "ls",
    "collect": "gc",
    "identity": "id",
    "prefix": "get_cache",
    "remove": "rm",
    "rotate": "trust_rotate",
    "train": "codec_train",
    "trust_list": "trust_ls",
    "trust_remove": "trust_rm",
}


class OldNames:
    """Base of both clients: answers to the old name of a verb, which neither `dir` nor `help` lists."""

    if not TYPE_CHECKING:  # for a type checker there are only the new ones

        def __getattr__(self, name: str) -> Any:
            new = NAMES.get(name)
            if new is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(f"{name} is now called {new}", DeprecationWarning, stacklevel=2)
            verb = getattr(self, new)
            # `prefix` raised where no daemon runs, and whoever caught that has an answer of their own to it.
            return functools.partial(verb, prefill_alone=False) if name == "prefix" else verb
