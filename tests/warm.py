"""Processes that start warm: forked from one that has imported everything already.

Most of what a short process costs is importing: a command line 0.3 CPU-seconds, a daemon 1.5, a model process 5.  The
suite starts hundreds of them, so each worker of pytest keeps a server, `python -m tests.warm SOCKET`, that imports
the node once and forks whoever asks; for model processes it keeps a second one, which has torch.  What runs is a
process of its own with its own memory, streams, environment and signals, as if it had been started by a command.

A process is started by a command where a test is about starting (`cold=True`), where its environment says what an
import would read, under a wrapper, and with `KVSWAP_COLD=1`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import gc
import json
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from tests.measuring import measure

ROOT = Path(__file__).resolve().parent.parent
_LENGTH = struct.Struct(">I")
# Read when they are needed, and not by an import.  The last three are written by libraries into the environment of
# whoever loads a model in the test's own process; `tests.conftest` takes out what a test leaves there.
_OWN = ("KVSWAP_", "XDG_", "PYTEST_", "COLUMNS", "SILENT_", "TORCHINDUCTOR_", "TOKENIZERS_", "TQDM_")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_MODELS = ".models"  # of the path of the second server


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> set[str]:
    """Name the variables that imports may read and of which two environments have different values."""
    return {name for name, _ in set(one.items()) ^ set(other.items()) if not name.startswith(_OWN)}


# -- asking ------------------------------------------------------------------------------------------


def _send(connection: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    data = json.dumps(message).encode()
    socket.send_fds(connection, [_LENGTH.pack(len(data))], descriptors)
    connection.sendall(data)


def _request(path: str, message: dict[str, Any], descriptors: Sequence[int]) -> tuple[socket.socket, int]:
    """Ask a server for a process: the connection that will say how it ended, and its id."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        _send(connection, message, descriptors)
        return connection, int(connection.recv(64))
    except BaseException:
        connection.close()
        raise


class Process:
    """A process that was started warm, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, path: str, message: dict[str, Any], descriptors: Sequence[int]) -> None:
        self._connection, self.pid = _request(path, message, descriptors)
        self.stdout: TextIO | None = None
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.  Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            told = self._connection.recv(256)
            self._connection.close()
            self.returncode = json.loads(told)["status"] if told else -9  # the server was killed, and all with it
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


@dataclass
class _Keeper:
    """The server of this process, started when it is first needed."""

    path: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    server: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.server is not None and self.server.poll() is None:
            return
        directory = tempfile.mkdtemp(prefix="kvswap-warm-")
        self.path, self.environment = f"{directory}/s", dict(os.environ)
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", self.path],
            stdin=subprocess.PIPE,  # its end is the server's
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self.server.stdout is not None
        atexit.register(self.stop, self.server, directory)
        assert self.server.stdout.read(2) == b"ok"

    @staticmethod
    def stop(server: subprocess.Popen[bytes], directory: str) -> None:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.close()
        server.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


_keeper = _Keeper()
cold: set[str] = set()  # variables for which processes were started cold; `tests.spending` tells of them


def able(environment: Mapping[str, str]) -> bool:
    """Say whether a process with this environment may start warm; starts the server."""
    if os.environ.get("KVSWAP_COLD") or not sys.platform.startswith("linux"):
        return False
    _keeper.start()
    names = differing(environment, _keeper.environment)
    cold.update(names)
    return not names


def start(
    program: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str], cwd: Path, stderr: int
) -> Process:
    """Start `python -m PROGRAM ARGUMENTS`, whose output is to be read; `able` has said that it can be warm."""
    reads, writes = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        process = _start([*program, *arguments], environment, cwd, (nothing, writes, stderr))
    finally:
        os.close(writes)
        os.close(nothing)
    process.stdout = os.fdopen(reads)
    return process


def _start(argv: Sequence[str], environment: Mapping[str, str], cwd: Path, streams: tuple[int, int, int]) -> Process:
    return Process(_keeper.path, {"argv": list(argv), "env": dict(environment), "cwd": str(cwd)}, streams)


def run(
    arguments: Sequence[str], environment: Mapping[str, str], timeout: float, typed: str | None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end.  Raises `subprocess.TimeoutExpired`."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as given:
        given.write((typed or "").encode())
        given.seek(0)
        streams = (given.fileno(), out.fileno(), err.fileno())
        process = _start(["kvswap", *arguments], environment, Path.cwd(), streams)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode())
        return subprocess.CompletedProcess(list(arguments), code, *texts)


def begin(arguments: Sequence[str], environment: Mapping[str, str], streams: tuple[int, int]) -> Process:
    """Begin a command line without input, whose output goes to these descriptors."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        return _start(["kvswap", *arguments], environment, Path.cwd(), (nothing, *streams))
    finally:
        os.close(nothing)


# -- model processes, started by a daemon --------------------------------------------------------------


class _ModelProcess:
    """What `kvswap.daemon.child` uses of `asyncio.subprocess.Process`."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        connection.setblocking(False)
        self._connection = connection
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        told = await asyncio.get_running_loop().sock_recv(self._connection, 256)
        self._connection.close()
        self.returncode = json.loads(told)["status"] if told else -9

    async def wait(self) -> int:
        await asyncio.shield(self._ending)
        assert self.returncode is not None
        return self.returncode


def _models_warm(path: str) -> None:
    """Let this process, a daemon, start its model processes from the servers at `path`."""
    from kvswap.daemon.child import PROGRAM, environment

    usual, plain = asyncio.create_subprocess_exec, environment(os.environ)

    def begin(command: Sequence[str], descriptors: Sequence[int], **options: Any) -> tuple[socket.socket, int]:
        _request(path, {"models": plain}, ())[0].close()  # there is a server of them when this is answered
        message = {"argv": list(command), "env": options["env"], "cwd": str(options["cwd"])}
        return _request(path + _MODELS, message, descriptors)

    async def create(*command: str, **options: Any) -> Any:
        if command[:-1] != PROGRAM or differing(options["env"], plain):
            return await usual(*command, **options)
        streams = [os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_WRONLY)]
        try:
            given = [*streams, 2, *options["pass_fds"]]
            return _ModelProcess(*await asyncio.to_thread(begin, command, given, **options))
        finally:
            for descriptor in streams:
                os.close(descriptor)

    asyncio.create_subprocess_exec = create  # type: ignore[assignment]


# -- the servers ---------------------------------------------------------------------------------------


class _Server:
    """Forks a process for each connection, and says on it how that ended."""

    def __init__(self, path: str, parent: int) -> None:
        self._path = path
        self._parent = parent  # a descriptor that is at its end when the parent is gone
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen(64)
        self._waking, self._woken = socket.socketpair()
        self._running: dict[int, socket.socket] = {}
        self._models: list[int] = []  # the server of model processes, once there is one
        for one in (self._waking, self._woken):
            one.setblocking(False)
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.freeze()

    def serve(self) -> _Request:
        """Serve until the parent is gone; what this returns, it returns in a new process: what that is to be."""
        while True:
            ready, _, _ = select.select([self._listening, self._waking, self._parent], [], [])
            if self._waking in ready:
                self._waking.recv(4096)
                self._reap()
            if self._parent in ready:
                self._end()
            if self._listening in ready and (request := self._answer()) is not None:
                return request

    def _end(self) -> None:
        """End, with all that was started; waited for, so that their CPU-seconds are told."""
        for pid in [*self._running, *self._models]:
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        os._exit(0)

    def _answer(self) -> _Request | None:
        connection, _ = self._listening.accept()
        head, descriptors, _, _ = socket.recv_fds(connection, _LENGTH.size, 8)
        (length,) = _LENGTH.unpack(head)
        data = b""
        while len(data) < length:
            data += connection.recv(length - len(data))
        message = json.loads(data)
        if "models" in message:
            request = None if self._models else self._fork_models(message["models"], connection)
            if request is None:
                connection.sendall(b"0")
                connection.close()
            return request
        if not (pid := os.fork()):
            connection.close()
            self._leave()
            return _Request(message, descriptors, self._path)
        for descriptor in descriptors:
            os.close(descriptor)
        self._running[pid] = connection
        with contextlib.suppress(OSError):
            connection.sendall(str(pid).encode())
        return None

    def _fork_models(self, environment: Mapping[str, str], connection: socket.socket) -> _Request | None:
        """Fork a server of model processes and wait until it listens; from there, what one of its own is to be."""
        told, tells = os.pipe()
        if pid := os.fork():
            self._models.append(pid)
            os.close(tells)
            os.read(told, 1)
            os.close(told)
            return None
        connection.close()
        os.close(told)
        self._leave()
        os.environ.clear()
        os.environ.update(environment)
        _import_model()
        server = _Server(self._path + _MODELS, self._parent)
        os.write(tells, b".")
        os.close(tells)
        return server.serve()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                if (connection := self._running.pop(pid, None)) is not None:
                    with contextlib.suppress(OSError):
                        connection.sendall(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
                    connection.close()

    def _leave(self) -> None:
        """Be a process of its own: nothing of the server is left."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for one in (self._listening, self._waking, self._woken, *self._running.values()):
            one.close()
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


@dataclass(frozen=True)
class _Request:
    """What a new process is to be; `path` is of the server that it comes from."""

    message: dict[str, Any]
    descriptors: list[int]
    path: str

    def become(self) -> None:
        """Run it; does not return."""
        for number, descriptor in enumerate(self.descriptors[:3]):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(self.message["cwd"])
        os.environ.clear()
        os.environ.update(self.message["env"])
        argv = self.message["argv"]
        measure()
        if self.path.endswith(_MODELS):
            from kvswap.worker.__main__ import main

            os.setsid()
            sys.argv[:] = [*argv[:-1], str(self.descriptors[3])]
            sys.exit(main())
        if "daemon" in argv:
            _models_warm(self.path)
        sys.argv[:] = argv
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def _import_node() -> None:
    """Import what a command line and a daemon use: all but what needs torch."""
    import kvswap.cli

    for module in pkgutil.walk_packages(kvswap.cli.__path__, "kvswap.cli."):
        import_module(module.name)
    for name in ("client.sync", "daemon.run", "net.libp2p.transport", "model.catalogue", "model.identity"):
        import_module(f"kvswap.{name}")
    assert "torch" not in sys.modules


def _import_model() -> None:
    """Import what a model process uses, without computing anything: threads would not outlive a fork."""
    import kvswap.model
    import kvswap.worker

    for package in (kvswap.model, kvswap.worker):
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("__"):
                import_module(f"{package.__name__}.{module.name}")
    for kind in ("llama", "qwen3", "gemma3"):
        import_module(f"transformers.models.{kind}.modeling_{kind}")


if __name__ == "__main__":
    _import_node()
    _server = _Server(sys.argv[1], 0)
    os.write(1, b"ok")
    _server.serve().become()
