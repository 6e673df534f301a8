"""Starting a llama-server and ending it: one from PATH, or the one that xllamacpp brings."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from kvswap.core.errors import KvswapError, UsageError
from kvswap.core.subprocesses import end_session
from kvswap.integrations.llamacpp.proxy.child import BUNDLED
from kvswap.integrations.llamacpp.proxy.flags import ServerFlags, read_bundled

_GRACE_SECONDS = 10.0


class ServerFailed(KvswapError):
    """The error for a llama-server that does not start, or ends again and again."""

    code = "llama_server"
    usual = ("see its output above", "start it without kvswap, with the same flags")


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_server(chosen: str | None, arguments: Sequence[str]) -> list[str]:
    """Return the beginning of the command of a llama-server: the one chosen, one from PATH, or the bundled one.

    Raises `UsageError` where there is none, or where the bundled one does not have one of these flags.
    """
    path = shutil.which(chosen or "llama-server")
    if path is not None:
        return [path]
    if chosen is not None:
        raise UsageError(f"there is no program {chosen}", hint="kvswap llama --server-program /path/to/llama-server")
    if find_spec("xllamacpp") is None:
        raise UsageError(
            "there is no llama-server here",
            cause="it is not in PATH, and xllamacpp is not installed beside kvswap",
            hint="pip install xllamacpp; or --server-program /path/to/llama-server",
        )
    read_bundled(arguments)
    return [BUNDLED]


class ServerProcess:
    """A llama-server on a loopback port of its own, whose slot files go to `slots`; it ends with this process."""

    def __init__(self, flags: ServerFlags, chosen: str | None, slots: Path) -> None:
        arguments = [*flags.arguments, "--host", "127.0.0.1"]
        self._command = [*find_server(chosen, arguments), *arguments, "--slot-save-path", f"{slots}/"]
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """The address at which it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it; it answers once its model is loaded."""
        module = "kvswap.integrations.llamacpp.proxy.child"
        # Threads of OpenMP that wait in a loop slow down whatever else runs.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *self._command, "--port", str(self.port)),
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=2,
            start_new_session=True,
        )

    def alive(self) -> bool:
        """Return True while it runs."""
        return self._process is not None and self._process.returncode is None

    async def ended(self) -> int:
        """Wait until it has ended, and return its exit status."""
        assert self._process is not None  # noqa: S101 - started
        return await self._process.wait()

    async def stop(self) -> None:
        """End it, and whatever it started."""
        if self._process is None:
            return
        await end_session(self._process, _GRACE_SECONDS)
