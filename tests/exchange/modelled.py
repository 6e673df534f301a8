"""A model for nodes in this process: the model process's own jobs in a thread, without the process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from msgspec import structs

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core import wire
from kvswap.core.errors import Incompatible
from kvswap.exchange import Node
from kvswap.exchange.model_port import ModelChoice
from kvswap.worker.conversation import job_event
from kvswap.worker.inbox import Inbox
from kvswap.worker.jobs import Jobs
from kvswap.worker.messages import CheckedArtifact, Job, NoiseJob, VerifyJob, tag_of
from tests.exchange.test_fetch import World, world

R = TypeVar("R")
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

    async def run(self, choice: ModelChoice, job: Job[R], on_event: Any = None, outbox: Any = None) -> R:
        self.done[tag_of(job)] += 1
        levels = job.levels if isinstance(job, VerifyJob) else []
        self.done.update(f"V{level}" for level in levels)
        if isinstance(job, NoiseJob) and choice.calibration_key in _NOISE:
            return _NOISE[choice.calibration_key]
        if self.cannot & set(levels):
            raise Incompatible("this model does not do that, in this test")
        loop = asyncio.get_running_loop()

        def sink(message: dict[str, Any]) -> None:
            if on_event is not None:
                asyncio.run_coroutine_threadsafe(on_event(job_event(message)), loop).result()

        async def pass_on() -> None:
            while outbox is not None:
                self._told.put(await outbox.get())

        async with self._turn:
            self._sink = sink
            self._told.clear()
            telling = asyncio.create_task(pass_on())
            self._cancelled.clear()
            working = asyncio.create_task(asyncio.to_thread(self._jobs.do, job))
            try:
                made = await asyncio.shield(working)
            except asyncio.CancelledError:
                self._cancelled.set()
                await asyncio.wait([working])
                working.exception()  # that it was stopped is nothing to be told
                raise
            finally:
                telling.cancel()
        if isinstance(job, NoiseJob):
            _NOISE[choice.calibration_key] = made
        if isinstance(made, CheckedArtifact) and self.slips:
            self.slips -= 1
            wrong = structs.replace(made.steps[-1], verdict="failed", why="a slip of this machine", proven=True)
            return structs.replace(made, steps=[*made.steps[:-1], wrong])  # type: ignore[return-value]
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
