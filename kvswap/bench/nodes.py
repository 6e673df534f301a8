"""The nodes of an experiment: daemons as processes, each with a home of its own that is removed afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from kvswap.client import Client
from kvswap.core.errors import KvswapError

_START_SECONDS = 60.0
_STOP_SECONDS = 30.0


def _start_daemon(arguments: Sequence[str], environment: Mapping[str, str], log: IO[str]) -> subprocess.Popen[str]:
    """Start `kvswap ARGUMENTS` with standard error to `log`, and standard output to be read."""
    command = [sys.executable, "-m", "kvswap", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)


class BenchNode:
    """A daemon on loopback, as a context manager; `settings` are those of the configuration, by name.

    Entering raises `KvswapError` where the daemon does not start.
    """

    def __init__(self, *flags: str, **settings: Any) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kvswap-bench-")
        self.home = Path(self._directory.name) / "home"
        self._flags = flags
        self._env = {f"KVSWAP_{name.upper()}": str(value) for name, value in settings.items()}
        self._process: subprocess.Popen[str] | None = None
        self.ready: dict[str, Any] = {}

    def __enter__(self) -> BenchNode:
        arguments = ["daemon", "--json", "--no-mdns", "--home", str(self.home), *self._flags]
        self.home.mkdir(parents=True)
        with (self.home / "stderr.log").open("w") as log:
            self._process = _start_daemon(arguments, os.environ | self._env, log)
        assert self._process.stdout is not None  # noqa: S101 - made with a pipe
        line = self._process.stdout.readline()  # printed once everything listens
        received = json.loads(line) if line else {}
        if "addresses" not in received:  # nothing, or an error
            said = (self.home / "stderr.log").read_text()[-500:]
            self.__exit__(None, None, None)
            raise KvswapError(f"a node of the experiment did not start: {said}", hint="kvswap doctor")
        self.ready = received
        return self

    @property
    def client(self) -> Client:
        """A blocking client of the daemon."""
        return Client(self.home)

    @property
    def address(self) -> str:
        """The first multiaddr of the daemon."""
        return str(self.ready["addresses"][0])

    def meet(self, other: BenchNode) -> None:
        """Trust the other node's publisher, and wait until a peer is connected.

        Raises `KvswapError` after a minute.
        """
        self.client.trust_add(str(other.ready["publisher"]))
        deadline = time.monotonic() + _START_SECONDS
        while not self.client.status().peers:
            if time.monotonic() > deadline:
                raise KvswapError("the nodes of the experiment do not meet", hint="kvswap doctor")
            time.sleep(0.1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        self._directory.cleanup()
