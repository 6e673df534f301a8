"""Work counted in lines of Python, and turns of comprehensions: the same on every machine, unlike seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Counted:
    """How many lines ran so far."""

    lines = 0


@contextmanager
def counting(of: str = "") -> Iterator[Counted]:
    """Counts the lines that run on this thread within the block, in files with `of` in their path."""
    counted = Counted()

    def local(frame: Any, event: str, given: Any) -> Any:
        counted.lines += event == "line"
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, given: local if of in frame.f_code.co_filename else None)
    try:
        yield counted
    finally:
        sys.settrace(before)
