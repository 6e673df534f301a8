"""Tell the C library how to keep the memory of a process that runs for months."""

from __future__ import annotations

import contextlib
import ctypes

_ARENA_MAX = -8  # of mallopt(3), in glibc's malloc.h
_ARENAS = 2


def few_arenas() -> None:
    """Let all threads of this process share two arenas; call before threads start.  Does nothing without glibc.

    A new thread gets an arena of its own, up to eight a core, and an arena keeps the largest block that any of its
    threads ever asked for.  What is allocated again from time to time, such as Python's table of interned texts (two
    megabytes), ends up in another thread's arena each time: a node grew by four megabytes at a time, for hours.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, _ARENAS)
