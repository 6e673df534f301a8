"""Names of verbs and of their parameters as they were: they work, with a DeprecationWarning, until the next version."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])

NAMES = {
    "artifacts": "ls",
    "beginning": "cached_prefix",
    "beginnings": "prefix_index",
    "collect": "gc",
    "identity": "id",
    "prefix": "get_cache",
    "remove": "rm",
    "rotate": "trust_rotate",
    "train": "codec_train",
    "trust_list": "trust_ls",
    "trust_remove": "trust_rm",
}
KEYWORDS = {"inexact": "allow_lossy", "room": "headroom", "strangers": "allow_untrusted"}


_COROUTINE = 0x80  # of a code object's flags: `inspect` is not worth importing for it


def _renamed(function: Callable[..., Any], named: dict[str, Any]) -> dict[str, Any]:
    for old in KEYWORDS.keys() & named.keys():
        new = KEYWORDS[old]
        if new in named:
            raise TypeError(f"{function.__name__}() got both {new!r} and its old name {old!r}")
        warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=3)
        named[new] = named.pop(old)
    return named


def old_keywords(function: F) -> F:
    """Let a function take its parameters by their old names as well."""

    @functools.wraps(function)
    def plain(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, **_renamed(function, named))

    @functools.wraps(function)
    async def coroutine(*arguments: Any, **named: Any) -> Any:
        return await function(*arguments, **_renamed(function, named))

    return cast(F, coroutine if function.__code__.co_flags & _COROUTINE else plain)


class OldNames:
    """Base of both clients: answers to the old name of a verb, which neither `dir` nor `help` lists."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the verbs of a client take their parameters by the old names."""
        super().__init_subclass__(**options)
        for name, verb in list(vars(cls).items()):
            code = getattr(verb, "__code__", None)
            if code is not None and not name.startswith("_") and set(KEYWORDS.values()) & set(code.co_varnames):
                setattr(cls, name, old_keywords(verb))

    if not TYPE_CHECKING:  # for a type checker there are only the new ones

        def __getattr__(self, name: str) -> Any:
            new = NAMES.get(name)
            if new is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            warnings.warn(f"{name} is now called {new}", DeprecationWarning, stacklevel=2)
            verb = getattr(self, new)
            # `prefix` raised where no daemon runs, and whoever caught that has an answer of their own to it.
            return functools.partial(verb, prefill_alone=False) if name == "prefix" else verb
