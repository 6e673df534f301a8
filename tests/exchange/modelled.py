"""A model for nodes in this process: the model process's own jobs, without the process."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core import wire
from kvswap.core.errors import Incompatible
from kvswap.exchange.model_port import ModelChoice
from kvswap.worker.jobs import Jobs

_NOISE: dict[str, Any] = {}


class RealModel:
    """Implements `ModelPort`.  `done` counts jobs, and steps of verifying as "V5"; `cannot` holds steps that it refuses."""

    def __init__(self, directory: Path, label: str = "tiny", dtype: str = "float32") -> None:
        self._directory, self._label = directory, label
        self._sink: Any = None
        self._jobs = Jobs(lambda message: self._sink(message), threading.Event())
        opened = self._jobs.run(
            {
                "job": "open",
                "directory": str(directory),
                "label": label,
                "dtype": dtype,
                "device": "cpu",
                "threads": 1,
            }
        )
        self._choice = ModelChoice(label, wire.convert(opened["identity"], ModelIdentity), dtype, "cpu", 1)
        self._turn = asyncio.Lock()
        self.loaded = self._jobs.loaded
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

        async with self._turn:
            self._sink = sink
            made = await asyncio.to_thread(self._jobs.run, {"job": job, **given})
        if job == "noise":
            _NOISE[choice.calibration_key] = made
        if job == "verify" and self.slips:
            self.slips -= 1
            made["steps"][-1] |= {"verdict": "failed", "why": "a slip of this machine", "proven": True}
        return made
