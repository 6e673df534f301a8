"""A model for nodes in this process: the model process's own jobs in a thread, without the process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core import wire
from kvswap.core.errors import Incompatible
from kvswap.exchange import Node
from kvswap.exchange.model_port import ModelChoice
from kvswap.worker.inbox import Inbox
from kvswap.worker.jobs import Jobs
from tests.exchange.test_fetch import World, world

_NOISE: dict[str, Any] = {}


@cache
def _opened(directory: Path, label: str, dtype: str) -> tuple[Any, ModelIdentity]:
    """A model, loaded once for all tests: no job changes it."""
    jobs = Jobs(lambda message: None, threading.Event())
    where = {"directory": str(directory), "label": label}
    opened = jobs.run({"job": "open", **where, "dtype": dtype, "device": "cpu", "threads": 1})
    return jobs.loaded, wire.convert(opened["identity"], ModelIdentity)


class RealModel:
    """Implements `ModelPort`.  `done` counts jobs, and steps of verifying as "V5"; `cannot` holds steps that it refuses."""

    def __init__(self, directory: Path, label: str = "tiny", dtype: str = "float32") -> None:
        self._sink: Any = None
        self._told = Inbox()
        self._cancelled = threading.Event()
        self._jobs = Jobs(lambda message: self._sink(message), self._cancelled, self._told)
        self.loaded, identity = _opened(directory, label, dtype)
        self._jobs._loaded = self.loaded
        self._choice = ModelChoice(label, identity, dtype, "cpu", 1)
        self._turn = asyncio.Lock()
        self.done: Counter[str] = Counter()
        self.cannot: set[int] = set()
        self.slips = 0  # so many looks are to come out wrong

    async def choose(self, name: str | None = None) -> ModelChoice:
        return self._choice

    async def warm(self, choice: ModelChoice) -> None:
        pass

    async def run(self, choice: ModelChoice, job: str, on_event: Any = None, tell: Any = None, **given: Any) -> Any:
        self.done[job] += 1
        self.done.update(f"V{level}" for level in given.get("levels", ()))
        if job == "noise" and choice.calibration_key in _NOISE:
            return _NOISE[choice.calibration_key]
        if self.cannot & set(given.get("levels", ())):
            raise Incompatible("this model does not do that, in this test")
        loop = asyncio.get_running_loop()

        def sink(message: dict[str, Any]) -> None:
            if on_event is not None:
                asyncio.run_coroutine_threadsafe(on_event(message), loop).result()

        async def pass_on() -> None:
            while tell is not None:
                self._told.put(await tell.get())

        async with self._turn:
            self._sink = sink
            self._told.clear()
            telling = asyncio.create_task(pass_on())
            self._cancelled.clear()
            working = asyncio.create_task(asyncio.to_thread(self._jobs.run, {"job": job, **given}))
            try:
                made = await asyncio.shield(working)
            except asyncio.CancelledError:
                self._cancelled.set()
                await asyncio.wait([working])
                working.exception()  # that it was stopped is nothing to be told
                raise
            finally:
                telling.cancel()
        if job == "noise":
            _NOISE[choice.calibration_key] = made
        if job == "verify" and self.slips:
            self.slips -= 1
            made["steps"][-1] |= {"verdict": "failed", "why": "a slip of this machine", "proven": True}
        return made


@asynccontextmanager
async def publisher_and_reader(root: Path, model: Path, **settings: Any) -> AsyncIterator[tuple[World, Node, Node]]:
    """Two nodes with the same model, in blocks of 64 tokens; the second trusts the first, and both are connected."""
    async with world(root) as w:
        publisher = await w.node(trust=False, model=RealModel(model), **({"block_tokens": 64} | settings))
        reader = await w.node(trust=False, model=RealModel(model), **({"block_tokens": 64} | settings))
        reader.trust.policy.add(str(publisher.identity.publisher.peer_id))
        yield w, publisher, reader


def jobs_of(node: Node) -> Counter[str]:
    """What this node's model was asked to do, so many times each."""
    assert isinstance(node.model, RealModel)
    return node.model.done
