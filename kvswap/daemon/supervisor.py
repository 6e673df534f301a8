"""Keeping the model process: started on demand, restarted after a crash, ended after idling.

Jobs run one at a time.  Cancelling a job asks the process to stop at the next block or token; one
that does not is killed, because a worker that ignores its node is of no use to anybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from kvswap.core import wire
from kvswap.core.errors import KvswapError, MalformedMessage, WorkerFailed
from kvswap.core.limits import LIMITS
from kvswap.core.settings import Settings
from kvswap.exchange.model_port import ModelChoice, OnEvent, Tell
from kvswap.model import catalogue
from kvswap.model.identity import directory_identity
from kvswap.worker import protocol

_CANCEL_SECONDS = 30.0
_BUFFER = 8 << 20


class ModelProcess:
    """`ModelPort` over a child process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._open: ModelChoice | None = None
        self._lock = asyncio.Lock()
        self._used = time.monotonic()
        self._identities: dict[Path, tuple[tuple[tuple[str, int, int], ...], Any]] = {}
        self.starts = 0
        self.crashes = 0

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def model(self) -> str | None:
        """Name of the loaded model."""
        return self._open.name if self._open is not None and self.pid is not None else None

    # -- ModelPort -------------------------------------------------------------------------------

    async def choose(self, name: str | None = None) -> ModelChoice:
        name = name or self._settings.model
        directory = catalogue.resolve(name, self._settings.models)
        identity = await asyncio.to_thread(self._identity, directory, name)
        s = self._settings
        return ModelChoice(name, identity, s.dtype, s.device, s.threads)

    def _identity(self, directory: Path, label: str) -> Any:
        # Hashing gigabytes again is only worth it when a file changed.
        files = sorted(p for p in directory.iterdir() if p.is_file())
        state = tuple((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files)
        known = self._identities.get(directory)
        if known is None or known[0] != state:
            known = (state, directory_identity(directory, label))
            self._identities[directory] = known
        return known[1]

    async def warm(self, choice: ModelChoice) -> None:
        async with self._lock:
            await self._ensure(choice)
            self._used = time.monotonic()

    async def run(
        self,
        choice: ModelChoice,
        job: str,
        on_event: OnEvent | None = None,
        tell: Tell | None = None,
        **arguments: Any,
    ) -> dict[str, Any]:
        async with self._lock:
            await self._ensure(choice)
            try:
                return await self._job({"job": job, **arguments}, on_event, tell)
            finally:
                self._used = time.monotonic()

    # -- process ---------------------------------------------------------------------------------

    async def _ensure(self, choice: ModelChoice) -> None:
        if self.pid is not None and self._open == choice:
            return
        await self._end()
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "kvswap.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_BUFFER,
            env=environment,
            start_new_session=True,  # Ctrl-C at a terminal goes to the node, which ends us in order
        )
        self.starts += 1
        directory = catalogue.resolve(choice.name, self._settings.models)
        request = {
            "job": "open",
            "directory": str(directory),
            "label": choice.name,
            "dtype": choice.dtype,
            "device": choice.device,
            "threads": choice.threads,
        }
        try:
            async with asyncio.timeout(LIMITS.worker_start_seconds):
                await self._job(request, None)
        except BaseException as error:
            await self._end()
            if isinstance(error, TimeoutError):
                raise WorkerFailed(
                    f"the model {choice.name} did not load in {LIMITS.worker_start_seconds:g} s"
                ) from None
            raise
        self._open = choice

    async def _job(self, request: dict[str, Any], on_event: OnEvent | None, tell: Tell | None = None) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None  # noqa: S101 - _ensure made it
        answered = False
        telling: asyncio.Task[None] | None = None
        try:
            process.stdin.write(protocol.frame(request))
            await process.stdin.drain()
            if tell is not None:
                telling = asyncio.create_task(_pass_on(tell, process.stdin))
            while True:
                message = await self._receive(process)
                if "event" in message:
                    if on_event is not None:
                        await on_event(message)
                    continue
                answered = True
                if "error" in message:
                    raise KvswapError.from_dict(message["error"])
                result: dict[str, Any] = message["result"]
                return result
        except (BrokenPipeError, ConnectionResetError, asyncio.IncompleteReadError) as error:
            code = await self._end()
            self.crashes += 1
            raise WorkerFailed(
                f"the model process ended while working (exit {code})",
                cause="not enough memory, or a fault in a library" if code == -9 else "a fault in a library",
                hint="kvswap status",
            ) from error
        except BaseException:
            if self.pid is not None and not answered and request["job"] != "open":
                await asyncio.shield(self._settle(process))
            raise
        finally:
            if telling is not None:
                telling.cancel()

    async def _receive(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None  # noqa: S101 - made with a pipe
        length = protocol.check_length(await process.stdout.readexactly(protocol.HEADER.size))
        message = wire.parse(await process.stdout.readexactly(length), MalformedMessage, items=LIMITS.pipe_items)
        if not isinstance(message, dict):
            raise MalformedMessage("the model process sent something else than a map")
        return message

    async def _settle(self, process: asyncio.subprocess.Process) -> None:
        """After a failed or cancelled job: stop the process's work and drop what it still sends."""
        assert process.stdin is not None  # noqa: S101 - made with a pipe
        try:
            process.stdin.write(protocol.frame({"cancel": True}))
            async with asyncio.timeout(_CANCEL_SECONDS):
                while True:
                    message = await self._receive(process)
                    if "result" in message or "error" in message:
                        return
        except (TimeoutError, OSError, asyncio.IncompleteReadError, KvswapError):
            await self._end()

    async def _end(self) -> int | None:
        process, self._process, self._open = self._process, None, None
        if process is None:
            return None
        if process.returncode is None:
            if process.stdin is not None:
                process.stdin.close()  # the process exits when its input ends
            try:
                await asyncio.wait_for(process.wait(), 3)
            except TimeoutError:
                process.kill()
                await process.wait()
        return process.returncode

    async def stop(self) -> None:
        """End the process now, whatever it does."""
        process = self._process
        if process is not None and process.returncode is None and self._lock.locked():
            process.kill()
        await self._end()

    async def unload_when_idle(self) -> None:
        """For ever: end a process that was not used for `idle_unload_seconds`."""
        while True:
            idle = self._settings.idle_unload_seconds
            await asyncio.sleep(min(idle, 5.0) or 5.0)
            if self.pid is not None and not self._lock.locked() and time.monotonic() - self._used > idle:
                async with self._lock:
                    await self._end()


async def _pass_on(tell: Tell, stdin: asyncio.StreamWriter) -> None:
    """Until cancelled; a process that is gone is noticed by whoever waits for its answer."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while True:
            stdin.write(protocol.frame({"tell": await tell.get()}))
            await stdin.drain()
