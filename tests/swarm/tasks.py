"""Tasks that live, by kind: every one that can be reached from the root of a trio run, and those of asyncio."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import trio


def of_trio() -> Counter[str]:
    """Count the tasks of this trio run by name and by the innermost function of libp2p or ours that waits.

    A task object that has ended and was not collected yet is none of them.
    """
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return Counter(f"{task.name.rpartition('.')[2]}: {_waits(task.coro)}" for task in _below(root))


def of_asyncio(loop: asyncio.AbstractEventLoop) -> Counter[str]:
    """Count the tasks of a loop by what they wait in."""
    return Counter(_waits(task.get_coro()) for task in asyncio.all_tasks(loop))


def _below(root: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    todo = [root]
    while todo:
        task = todo.pop()
        yield task
        todo += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def _waits(coro: Any) -> str:
    found = ""
    while coro is not None:
        code = getattr(coro, "cr_code", None) or getattr(coro, "gi_code", None)
        if code is not None and any(f"/{headroom}/" in code.co_filename for headroom in ("libp2p", "kvswap")):
            found = code.co_qualname
        coro = getattr(coro, "cr_await", None) or getattr(coro, "gi_yieldfrom", None)
    return found
