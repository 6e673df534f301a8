"""One model process: started, spoken to, found frozen, ended.

One job at a time, one reader of the socket at a time.  However often a job is cancelled, it is over only when the
process has obeyed or is gone, so the next one finds the two in step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kvswap.core import wire
from kvswap.core.errors import KvswapError, MalformedMessage, WorkerFailed
from kvswap.core.limits import LIMITS
from kvswap.core.tasks import until_done
from kvswap.exchange.model_port import OnEvent, Outbox
from kvswap.model.precision import VARIABLES
from kvswap.worker import logs, protocol, start
from kvswap.worker.conversation import Cancellation, LogFrame, NoticeFrame, job_event, sign_of_life
from kvswap.worker.messages import Job, JobEnd, end_of, result_of

R = TypeVar("R")
_log = logging.getLogger("kvswap.worker")

_BUFFER = 8 << 20
_SLICES = 10  # of a time-out: a loop that was itself held up, or a clock that jumped, costs one of them
_SPINS = 30_000  # GNU OpenMP's own are 300,000, which is far longer than a step of a model takes
_END_SECONDS = 3.0
_REAP_SECONDS = 10.0  # a process that the kernel does not end in that time is left behind
_WORKED_SECONDS = 0.02  # of CPU between two heartbeats: less, and nothing was computed
PROGRAM = (sys.executable, "-P", start.__file__)


@dataclass(frozen=True, slots=True)
class Patience:
    """The limits of waiting for a model process, in seconds."""

    silent: float = LIMITS.worker_silent_seconds  # without a heartbeat
    stalled: float = LIMITS.worker_stalled_seconds  # with heartbeats, but nothing computed, said or told
    load: float = LIMITS.worker_start_seconds
    cancel: float = 30.0


class Lost(Exception):
    """The process is of no more use: gone, frozen, or out of step."""

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(what)
        self.what, self.cause = what, cause


class _Time:
    """Seconds that were really waited, out of so many."""

    def __init__(self, most: float | None) -> None:
        self.most, self.spent = most, 0.0

    def check(self) -> None:
        """Raise `Lost` when they are over."""
        if self.most is not None and self.spent >= self.most:
            raise Lost(f"did not do it within {self.most:g} s", "it is too much for this machine, or it hangs")


class Child:
    """A model process.  `start` once, then jobs, then `end`."""

    def __init__(self, home: Path, program: Sequence[str] = PROGRAM, patience: Patience | None = None) -> None:
        self._home, self._program, self._patience = home, program, patience or Patience()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._receiving: asyncio.Task[dict[str, Any]] | None = None  # a frame that a job did not wait for
        self._ending: asyncio.Task[None] | None = None
        self._activity = 0  # of ours: what was told

    @property
    def pid(self) -> int | None:
        """The process's id while it lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None and self._ending is None else None

    async def start(self) -> None:
        """Start the process, with a socket and no other way in.  Raises `WorkerFailed`."""
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._program,
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,  # it turns to standard error by itself
                pass_fds=(theirs.fileno(),),
                env=environment(os.environ),
                cwd=self._home if self._home.is_dir() else "/",
                start_new_session=True,  # Ctrl-C at a terminal goes to the node, which ends us in order
            )
            self._reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=_BUFFER)
        except BaseException as error:
            ours.close()  # a process that started all the same ends with it
            if isinstance(error, OSError):
                raise WorkerFailed(
                    f"the model process did not start: {error.strerror or error}",
                    cause="not enough memory, or too many processes",
                    hint="kvswap status",
                ) from error
            raise
        finally:
            theirs.close()

    # -- jobs ------------------------------------------------------------------------------------

    async def job(
        self, job: Job[R], on_event: OnEvent | None, outbox: Outbox | None = None, most: float | None = None
    ) -> R:
        """Run one job; `most`: seconds it may take.

        Raises the job's own error, or `Lost`.  When this returns or raises, nothing of the job is on its way any more.
        """
        telling: asyncio.Task[None] | None = None
        answered = False
        try:
            await self._send(job)
            if outbox is not None:
                telling = asyncio.create_task(self._pass_on(outbox))
            end = await self._end_of_job(on_event, _Time(most))
            answered = True
            if end.error is not None:
                if end.trace is not None:  # of what was not ours: for the log alone
                    _log.error("%s", str(end.error.get("message")), extra={"trace": end.trace[:16_384]})
                raise KvswapError.from_dict(end.error)
            return result_of(job, end.result)
        except BaseException as error:
            if not answered and self.pid is not None:
                if telling is not None:
                    telling.cancel()
                gone = isinstance(error, Lost) or most is not None  # a load obeys nobody
                await until_done([asyncio.create_task(self._end(now=True) if gone else self._cancel())])
            raise
        finally:
            if telling is not None:
                telling.cancel()

    async def _end_of_job(self, on_event: OnEvent | None, time: _Time) -> JobEnd:
        """Return the frame that ends a job, and pass on those before it.  Raises `Lost`."""
        idle, cpu, activity = 0.0, 0, self._activity
        while True:
            before = time.spent
            message = await self._receive(time)
            try:
                if "event" not in message:
                    return end_of(message)
                sign = sign_of_life(message)
            except WorkerFailed as error:
                raise Lost(f"said something that cannot be read ({error.message})", "a fault in a library") from error
            time.check()
            if isinstance(sign, LogFrame):
                logs.write(sign, self.pid)
                continue
            if sign is None:
                idle = 0.0
                if on_event is not None:
                    await on_event(job_event(message))
                continue
            used, cpu = sign.cpu_us - cpu, sign.cpu_us
            worked = used > _WORKED_SECONDS * 1e6 or activity != self._activity
            idle, activity = (0.0 if worked else idle + time.spent - before), self._activity
            if idle > self._patience.stalled:
                raise Lost(f"did nothing for {idle:.0f} s in the middle of a job", "a dead lock in a library")

    async def _send(self, message: msgspec.Struct) -> None:
        try:
            self._writer.write(protocol.frame(message))
            await self._writer.drain()
        except OSError as error:
            raise self._gone() from error

    async def _pass_on(self, outbox: Outbox) -> None:
        """Until cancelled; a process that is gone is noticed by whoever waits for its answer."""
        with contextlib.suppress(Lost):
            while True:
                await self._send(NoticeFrame(notice=await outbox.get()))
                self._activity += 1

    async def _receive(self, time: _Time) -> dict[str, Any]:
        """Receive the next frame.  Cancelled, it leaves the frame to whoever asks next.  Raises `Lost`."""
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._frame())
        loop, silent = asyncio.get_running_loop(), 0
        piece = self._patience.silent / _SLICES
        while not self._receiving.done():
            began = loop.time()
            await asyncio.wait([self._receiving], timeout=piece)
            time.spent += min(loop.time() - began, piece)
            if self._receiving.done():
                break
            silent += 1
            time.check()
            if silent >= _SLICES:
                raise Lost(
                    f"has not been heard of for {self._patience.silent:g} s",
                    "it was stopped, or the machine has no memory left",
                )
        receiving, self._receiving = self._receiving, None
        return receiving.result()

    async def _frame(self) -> dict[str, Any]:
        try:
            length = protocol.check_length(await self._reader.readexactly(protocol.HEADER.size))
            message = wire.parse(await self._reader.readexactly(length), MalformedMessage, items=LIMITS.pipe_items)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise self._gone() from error
        except MalformedMessage as error:
            raise Lost(f"said something that is no frame ({error.message})", "a fault in a library") from error
        if not isinstance(message, dict):
            raise Lost("said something else than a map", "a fault in a library")
        return message

    def _gone(self) -> Lost:
        return Lost("ended while working", "a fault in a library, or not enough memory")

    async def _cancel(self) -> None:
        """Tell a job to stop and drop what it still sends; a process that does not obey is ended."""
        try:
            await self._send(Cancellation())
            time = _Time(self._patience.cancel)
            while "event" in await self._receive(time):
                time.check()
        except Lost:
            await self._end(now=True)

    # -- the end ---------------------------------------------------------------------------------

    async def end(self, now: bool = False) -> int | None:
        """End the process; `now`: whatever it does.  Its exit code, if it is known.  Idempotent."""
        await until_done([asyncio.create_task(self._end(now))])
        return self._process.returncode if self._process is not None else None

    async def _end(self, now: bool) -> None:
        if self._process is None:
            return
        if self._ending is None:
            self._ending = asyncio.create_task(self._wait_for_end())
        if now:
            self._kill()
        await self._ending

    def _kill(self) -> None:
        """Kill the process and what it started."""
        assert self._process is not None  # noqa: S101 - `_end` looked
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _wait_for_end(self) -> None:
        process = self._process
        assert process is not None  # noqa: S101 - `_end` looked
        self._writer.close()  # the process ends with its input
        reaping = asyncio.create_task(process.wait())
        await asyncio.wait([reaping], timeout=_END_SECONDS)
        if not reaping.done():
            self._kill()
            await asyncio.wait([reaping], timeout=_REAP_SECONDS)
        if not reaping.done():
            reaping.cancel()
        if self._receiving is not None:
            self._receiving.cancel()


def environment(of: Mapping[str, str]) -> dict[str, str]:
    """Make the environment of a model process from the node's.

    An empty entry of PYTHONPATH, or ".", means the current directory of the node: nothing is run from there.  What
    would change how libraries compute (`VARIABLES`) is left out.  OpenMP's threads soon stop to wait in a busy loop,
    unless the user says otherwise: alone nothing is slower by it, and two model processes on one machine took each
    other's cores.
    """
    of = {name: value for name, value in of.items() if name not in VARIABLES}
    out = {"GOMP_SPINCOUNT": str(_SPINS)} | of
    out |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONSAFEPATH": "1"}
    named = [Path(p) for p in out.pop("PYTHONPATH", "").split(os.pathsep) if p]
    paths = [str(p.absolute()) for p in named if p.is_absolute() or p.resolve() != Path.cwd()]
    return out | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})
