"""Keeping the model processes: started on demand, restarted after a crash, ended after idling.

Each model has a process of its own, at most `model_processes` of them (2), so one that loads for minutes, hangs or
crashes holds up nobody who asks for another.  Jobs of one model run one at a time, in order.  Cancelling a job asks
the process to stop at the next block or token; one that does not is killed, and so is one that says nothing any more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kvswap.api.status import ProcessState
from kvswap.core.errors import KvswapError, WorkerFailed
from kvswap.core.settings import Settings
from kvswap.core.upkeep import Problems, forever
from kvswap.daemon.child import PROGRAM, Child, Lost, Patience
from kvswap.exchange.model_port import ModelChoice, OnEvent, Outbox
from kvswap.model import adapters, catalogue, needs
from kvswap.model.identity import directory_identity
from kvswap.worker.messages import Job, OpenJob

R = TypeVar("R")
_logger = logging.getLogger(__name__)
_LOOK_SECONDS = 0.5  # at least, between two looks for what is idle
_PROBLEM = "model process"
_KILLED = "not enough memory"
_MEMORY = ("out of memory", "memoryerror", "outofmemory", "cannot allocate memory", "can't allocate memory")
_LOADED_PER_BYTE = 1.3  # memory that a model takes, for each byte of its files


@dataclass(eq=False, slots=True)
class _Slot:
    """The place of one model: its process, who uses it and who waits for it."""

    choice: ModelChoice
    child: Child | None = None
    loaded: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the job that runs
    users: int = 0  # jobs that run or wait
    unused: asyncio.Event = field(default_factory=asyncio.Event)
    used: float = field(default_factory=time.monotonic)
    failure: tuple[int, KvswapError] | None = None  # of the last load, and its number
    loads: int = 0

    @property
    def pid(self) -> int | None:
        return self.child.pid if self.child is not None else None

    @property
    def state(self) -> str:
        if self.lock.locked():
            return "working" if self.loaded else "loading"
        return "idle"

    async def end(self, now: bool = False) -> int | None:
        child, self.child, self.loaded = self.child, None, False
        if child is None:
            return None
        pid, code = child.pid, await child.end(now)
        _logger.info("model process %s ended, exit %s", pid, code)
        return code


class ModelProcess:
    """A `ModelPort` over child processes."""

    def __init__(
        self,
        settings: Settings,
        problems: Problems | None = None,
        *,
        program: Sequence[str] = PROGRAM,
        patience: Patience | None = None,
    ) -> None:
        self._settings, self._program, self._patience = settings, program, patience or Patience()
        self.problems = problems if problems is not None else Problems()
        self._slots: list[_Slot] = []
        self._going: list[_Slot] = []  # those that end their jobs and begin no others
        self._placing = asyncio.Lock()  # who needs a place that is not free, in order
        self._stopping = False
        self._identities: dict[Path, tuple[tuple[tuple[str, int, int], ...], Any]] = {}
        self.starts = 0
        self.crashes = 0

    @property
    def processes(self) -> list[ProcessState]:
        """The model processes that run."""
        running = [slot for slot in self._slots if slot.pid is not None]
        return [ProcessState(model=slot.choice.name, pid=slot.pid, state=slot.state) for slot in running]

    @property
    def pid(self) -> int | None:
        """The process that was used last."""
        return self._last.pid if self._last is not None else None

    @property
    def model(self) -> str | None:
        """Name of the loaded model that was used last."""
        return self._last.choice.name if self._last is not None and self._last.loaded else None

    @property
    def _last(self) -> _Slot | None:
        return max((s for s in self._slots if s.pid is not None), key=lambda s: s.used, default=None)

    # -- ModelPort -------------------------------------------------------------------------------

    async def choose(self, name: str | None = None) -> ModelChoice:
        """Return the model that a name means here; see `ModelPort`."""
        name = name or self._settings.model
        needs.require(f"the model {name!r}")
        directory = catalogue.resolve(name, self._settings.models)
        label = catalogue.label_of(directory, self._settings.models)
        identity = await asyncio.to_thread(self._identity, directory, label)
        s = self._settings
        return ModelChoice(name, identity, s.dtype, s.device, s.threads)

    def _identity(self, directory: Path, label: str) -> Any:
        # Hashing gigabytes again is only worth it when a file changed.
        state = adapters.state(directory)
        known = self._identities.get(directory)
        if known is None or known[0] != state:
            known = (state, directory_identity(directory, label))
            self._identities[directory] = known
        return known[1]

    async def warm(self, choice: ModelChoice) -> None:
        """Load the model now."""
        async with self._held(choice) as slot:
            await self._ensure(slot)

    async def run(
        self, choice: ModelChoice, job: Job[R], on_event: OnEvent | None = None, outbox: Outbox | None = None
    ) -> R:
        """Run a job in the model's process, which is started where none is; see `ModelPort`."""
        async with self._held(choice) as slot:
            child = await self._ensure(slot)
            try:
                result = await child.job(job, on_event, outbox)
            except Lost as lost:
                raise await self._lost(slot, lost) from lost
            self.problems.clear_one(_PROBLEM)
            return result

    # -- places ----------------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, choice: ModelChoice) -> AsyncIterator[_Slot]:
        """Hold the place of a model, and its process, for one job."""
        slot = self._of(choice)
        if slot is None:
            async with self._placing:
                slot = self._of(choice) or await self._place(choice)
                slot.users += 1
        else:
            slot.users += 1
        slot.unused.clear()
        loads = slot.loads
        try:
            async with slot.lock:
                if slot.failure is not None and slot.failure[0] > loads:  # the load that this one waited for
                    raise KvswapError.from_dict(slot.failure[1].to_dict())
                yield slot
        finally:
            slot.users -= 1
            slot.used = time.monotonic()
            if not slot.users:
                slot.unused.set()
                if slot.pid is None and slot in self._slots:
                    self._slots.remove(slot)

    def _of(self, choice: ModelChoice) -> _Slot | None:
        self._check_stopping()
        return next((s for s in self._slots if s.choice == choice), None)

    def _check_stopping(self) -> None:
        if self._stopping:
            raise _the_end()

    async def _place(self, choice: ModelChoice) -> _Slot:
        """Make a new place, for which another may have to go: it ends its jobs first, and begins no others."""
        fits = await asyncio.to_thread(self._fits, choice)
        while len(self._slots) >= (max(1, self._settings.model_processes) if fits else 1):
            idle = [s for s in self._slots if not s.users]
            outdated = [s for s in idle if s.choice.name == choice.name]
            going = min(outdated or idle or self._slots, key=lambda s: s.used)
            self._slots.remove(going)
            self._going.append(going)
            try:
                if going.users:
                    await going.unused.wait()
                await going.end()
            except asyncio.CancelledError:
                if going.child is not None:
                    self._slots.append(going)
                raise
            finally:
                self._going.remove(going)
            self._check_stopping()
        slot = _Slot(choice)
        self._slots.append(slot)
        return slot

    def _fits(self, choice: ModelChoice) -> bool:
        """Whether this machine has memory for one more model; where that cannot be told, it has."""
        try:
            directory = catalogue.resolve(choice.name, self._settings.models)
            size = sum(p.stat().st_size for p in directory.iterdir() if p.is_file())
            free = available_bytes(Path("/proc/meminfo").read_text())
        except (OSError, KvswapError, ValueError):
            return True
        return free is None or choice.device != "cpu" or size * _LOADED_PER_BYTE < free

    # -- processes -------------------------------------------------------------------------------

    async def _ensure(self, slot: _Slot) -> Child:
        """Return the process of a place, its model loaded.  Call it with the place's lock held."""
        if slot.child is not None and slot.loaded and slot.pid is not None:
            return slot.child
        await slot.end(now=True)
        try:
            try:
                return await self._load(slot)
            except WorkerFailed as error:
                if not _of_memory(error) or not await self._end_idle():
                    raise
            return await self._load(slot)  # alone on this machine
        except KvswapError as error:
            slot.loads += 1
            slot.failure = (slot.loads, error)
            raise

    async def _load(self, slot: _Slot) -> Child:
        choice, child = slot.choice, Child(self._settings.home, self._program, self._patience)
        directory = catalogue.resolve(choice.name, self._settings.models)
        request = OpenJob(
            directory=str(directory.absolute()),
            label=choice.identity.label,
            dtype=choice.dtype,
            device=choice.device,
            threads=choice.threads,
        )
        slot.child = child
        try:
            self._check_stopping()
            await child.start()
            self.starts += 1
            self._check_stopping()  # it came too late to be ended by `stop`
            await child.job(request, None, most=self._patience.load)
        except Lost as lost:
            raise await self._lost(slot, lost, f"loading {choice.name}") from lost
        except BaseException:
            await slot.end(now=True)
            raise
        slot.loaded = True
        _logger.info("model process %s has loaded its model", child.pid)
        self.problems.clear_one(_PROBLEM)
        return child

    async def _lost(self, slot: _Slot, lost: Lost, doing: str = "") -> WorkerFailed:
        """End a process that is of no more use; the error for who waited for it."""
        code = await slot.end(now=True)
        if self._stopping:  # it did not fail
            return _the_end()
        self.crashes += 1
        _logger.warning("a model process %s", lost.what)
        by_itself = lost.what.startswith("ended")
        after = f" (exit {code})" if by_itself else "; it was ended, the next request starts another"
        error = WorkerFailed(
            f"the model process {lost.what}{f', {doing}' if doing else ''}{after}",
            cause=f"{_KILLED}, or somebody killed it" if by_itself and code == -9 else lost.cause,
            hint="the same command again: another process is started; kvswap.log may say more",
        )
        self.problems.note(_PROBLEM, error)
        return error

    async def _end_idle(self) -> bool:
        """End what nobody uses; whether there was anything."""
        idle = [s for s in self._slots if not s.users and s.pid is not None]
        for slot in idle:
            self._slots.remove(slot)
            await slot.end()
        return bool(idle)

    async def stop(self) -> None:
        """End the processes now, whatever they do; no job begins any more."""
        self._stopping = True
        for slot in [*self._slots, *self._going]:
            await slot.end(now=bool(slot.users))

    async def unload_when_idle(self) -> None:
        """End processes that were not used for `idle_unload_seconds`, for ever."""
        idle = self._settings.idle_unload_seconds
        await forever("unload", self._unload, self.problems, pause=min(max(_LOOK_SECONDS, idle), 5.0) if idle else 5.0)

    async def _unload(self) -> None:
        oldest = time.monotonic() - self._settings.idle_unload_seconds
        for slot in [s for s in self._slots if not s.users and s.used < oldest]:
            self._slots.remove(slot)
            await slot.end()


def _the_end() -> WorkerFailed:
    return WorkerFailed(
        "the daemon ended before the model was done",
        cause="somebody ended it, or this machine is shut down",
        hint="kvswap daemon &, then the same command: what is stored stays",
    )


def _of_memory(error: WorkerFailed) -> bool:
    """Whether a load that failed may do better where nothing else is loaded."""
    text = error.message.lower()
    return (error.cause or "").startswith(_KILLED) or any(name in text for name in _MEMORY)


def available_bytes(meminfo: str) -> int | None:
    r"""Read the memory that can be had without swapping from the text of /proc/meminfo; None: it does not say.

    >>> available_bytes("MemTotal:  8 kB\nMemAvailable:  4 kB\n")
    4096
    """
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None
