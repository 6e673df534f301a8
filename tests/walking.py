"""A tracer of use cases: which files of a folder a call goes through, in the order in which they are entered.

A file is entered when a function or method of it is called from another file.  Calls one after the other into one file
are one visit: who reads along has it open.  Reading an attribute is no call, also where a property computes it, and
neither is a callback that was handed over.  A thread that is started meanwhile has a walk of its own, which begins
where it is first seen.  The files in which the use case itself is written are left out.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import kvswap

ROOT = Path(kvswap.__file__).parent


class Walk:
    """The files below one folder of the package that a use case enters, in order."""

    def __init__(self, folder: str, *own: str, threads: bool = False) -> None:
        """`own`: the files in which the use case is written, of which one begins it; `threads`: follow new threads."""
        self._root, self._own, self._threads = ROOT / folder, own, threads
        self._visits: list[tuple[int, str]] = []  # thread, file
        self.calls: list[str] = []  # "caller -> file:function", for whoever wants to know why
        self._frames: list[FrameType] = []  # kept, so that a coroutine that goes on is not taken for another call

    @property
    def files(self) -> list[str]:
        """Each file once, in the order of first calls."""
        return list(dict.fromkeys(name for _, name in self._visits))

    @property
    def again(self) -> dict[str, int]:
        """How often each file is visited that is visited more than once."""
        return {name: times for name, times in Counter(name for _, name in self._visits).items() if times > 1}

    def see(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call; `sys.setprofile` calls this."""
        if event != "call" or (name := self._file(frame)) is None or any(frame is known for known in self._frames):
            return
        self._frames.append(frame)
        callers = list(self._callers(frame))
        ours = self._threads or any(own in callers for own in self._own)
        if not ours or name in self._own or callers[:1] == [name] or _is_attribute(frame) or _is_callback(frame):
            return
        if not callers and name in self.files:
            return  # a thread goes on in the file that started it
        self.calls.append(f"{callers[0] if callers else 'thread'} -> {name}:{frame.f_code.co_qualname}")
        thread = threading.get_ident()
        last = next((file for of, file in reversed(self._visits) if of == thread), None)
        if last != name:
            self._visits.append((thread, name))

    def _callers(self, frame: FrameType) -> Iterator[str]:
        """Yield the files of those that wait for this call, the nearest first."""
        above = frame.f_back
        while above is not None:
            if (name := self._file(above)) is not None:
                yield name
            above = above.f_back

    def _file(self, frame: FrameType) -> str | None:
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(self._root) or frame.f_code.co_name.startswith("<"):
            return None
        return str(path.relative_to(self._root).with_suffix(""))


def _is_attribute(frame: FrameType) -> bool:
    """Whether a property is computed."""
    name = frame.f_code.co_name
    of = type(frame.f_locals.get("self"))
    return isinstance(inspect.getattr_static(of, name, None), property)


def _is_callback(frame: FrameType) -> bool:
    """Whether this is a function within a function, which somebody else was given to call."""
    return "<locals>" in frame.f_code.co_qualname


@contextmanager
def walking(folder: str, *own: str, threads: bool = False) -> Iterator[Walk]:
    """Follow what this thread calls, and with `threads` what those call that are started meanwhile."""
    walk = Walk(folder, *own, threads=threads)
    if threads:
        threading.setprofile(walk.see)
    sys.setprofile(walk.see)
    try:
        yield walk
    finally:
        sys.setprofile(None)
        if threads:
            threading.setprofile(None)
