"""The interface of the model process that the use cases need; `kvswap.daemon.supervisor` provides it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from kvswap.artifact.manifest import ModelIdentity
from kvswap.core.errors import NotFound
from kvswap.worker.conversation import JobEvent, Notice
from kvswap.worker.messages import Job

R = TypeVar("R")
Outbox = asyncio.Queue[Notice]
OnEvent = Callable[[JobEvent], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """A model as this node would run it."""

    name: str
    identity: ModelIdentity
    dtype: str
    device: str
    threads: int

    @property
    def calibration_key(self) -> str:
        """The key under which this machine's measurements with the model are kept."""
        return f"{self.identity.digest.hex()[:32]}/{self.dtype}/{self.device}/{self.threads}"


class ModelPort(Protocol):
    """The port to one model process, which is started on demand."""

    async def choose(self, name: str | None = None) -> ModelChoice:
        """Return the model that a name means here (None: the node's default).  Loads nothing.

        Raises `NotFound` when its files are not on this machine.
        """

    async def run(
        self, choice: ModelChoice, job: Job[R], on_event: OnEvent | None = None, outbox: Outbox | None = None
    ) -> R:
        """Run a job and return its result, loading the model first if needed.  Jobs run one at a time, in order.

        What is put into `outbox` reaches the job while it runs.

        Cancelling stops the job at the next block or token.  Raises the job's own error, or
        `WorkerFailed` when the process died.
        """

    async def warm(self, choice: ModelChoice) -> None:
        """Load the model now."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model identity and dtype that an artifact must be of."""

    model: bytes
    dtype: str

    @classmethod
    def of(cls, choice: ModelChoice) -> Wanted:
        """Return the identity and dtype of a model as this node would run it."""
        return cls(choice.identity.digest, choice.dtype)


async def own_model(model: ModelPort) -> ModelChoice | None:
    """Return the node's model, or None when its files are not here: then compatibility cannot be judged."""
    try:
        return await model.choose()
    except NotFound:
        return None
