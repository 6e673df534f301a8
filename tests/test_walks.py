"""The walks of use cases: which files of the exchange a call goes through, in the order in which they are entered.

A file is entered when a function of it is called from another file.  What `docs/architecture.md` shows is what happens.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import kvswap
from kvswap.exchange.fetch import fetch
from tests.exchange.test_fetch import DOCUMENT, world
from tests.support import make_artifact, run

EXCHANGE = Path(kvswap.__file__).parent / "exchange"
DOCS = EXCHANGE.parent.parent / "docs" / "architecture.md"
# How often what is entered more than once is entered; it may only shrink.
AGAIN = {"planning/decision": 5, "discovery/resolve": 2, "model_port": 2, "request": 2, "verification/claims": 2}


class Walk:
    """Files of the exchange that were entered, in order, and how often."""

    def __init__(self, start: str) -> None:
        self.start = start
        self.files: list[str] = []
        self.entered: Counter[str] = Counter()
        self._frames: list[FrameType] = []  # kept, so that a coroutine that goes on is not taken for another call

    def see(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call; `sys.setprofile` calls this."""
        name = _file(frame)
        if event != "call" or name is None or any(frame is known for known in self._frames):
            return
        self._frames.append(frame)
        callers = list(_callers(frame))
        if self.start not in callers or name in (callers[0], self.start):
            return  # of another task, or within a file
        self.entered[name] += 1
        if name not in self.files:
            self.files.append(name)


def _callers(frame: FrameType) -> Iterator[str | None]:
    """Yield the files of those that wait for this call, the nearest first."""
    above = frame.f_back
    while above is not None:
        yield _file(above)
        above = above.f_back


def _file(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    inside = path.is_relative_to(EXCHANGE) and not frame.f_code.co_name.startswith("<")
    return str(path.relative_to(EXCHANGE).with_suffix("")) if inside else None


@contextmanager
def walking(start: str) -> Iterator[Walk]:
    """Follow what this thread calls."""
    walk = Walk(start)
    sys.setprofile(walk.see)
    try:
        yield walk
    finally:
        sys.setprofile(None)


def test_the_walk_of_a_fetch_from_the_store(tmp_path: Path) -> None:
    async def body() -> Walk:
        async with world(tmp_path) as w:
            reader = await w.node()
            w.give(reader, make_artifact(tokens=100))
            with walking("fetch") as walk:
                await fetch(reader, DOCUMENT)
            return walk

    walk = run(body())
    assert " → ".join(f"`{name}`" for name in walk.files) in " ".join(DOCS.read_text().split())
    more = {name: times for name, times in walk.entered.items() if times > AGAIN.get(name, 1)}
    assert more == {}
