"""The entry point of the model process, which speaks `protocol` on the socket whose descriptor is its last argument.

Standard input is /dev/null and standard output is redirected to standard error, so nothing that a library prints or
reads gets between the frames.  While a job runs, a thread sends a heartbeat every few seconds with the CPU time used so
far, by which the node distinguishes a working process from a frozen one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol, cast

import msgspec

from kvswap.core.errors import LocalFault, Unexpected, WorkerFailed
from kvswap.core.failures import as_kvswap_error, brief
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable
from kvswap.worker import logs, protocol
from kvswap.worker.conversation import Heartbeat, notice_of
from kvswap.worker.inbox import Inbox
from kvswap.worker.messages import JobEnd


class _JobRunner(Protocol):
    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """Do one job.  Raises `KvswapError`."""


_log = logging.getLogger("kvswap.worker")
_TRACE = 16_384  # characters of a traceback
MakeJobs = Callable[[Callable[[dict[str, Any]], None], threading.Event, Inbox], _JobRunner]


def own_streams() -> None:
    """Redirect standard input from /dev/null, and standard output to standard error."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # there is no standard error
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
    os.close(nothing)


class _Channel:
    """The socket to the node, on which any thread may send a whole frame."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self._lock = threading.Lock()

    def send(self, message: msgspec.Struct | dict[str, Any]) -> None:
        data = protocol.frame(message)
        with self._lock:
            self._socket.sendall(data)

    def stream(self) -> BinaryIO:
        return cast(BinaryIO, self._socket.makefile("rb"))


def main(make_jobs: MakeJobs | None = None, heartbeat: float = LIMITS.heartbeat_seconds) -> int:
    """Serve jobs until the node closes its end of the socket, which ends the process; it never returns otherwise."""
    own_streams()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the node handles Ctrl-C
    channel = _Channel(int(sys.argv[-1]))
    logs.forward(channel.send)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue(16)
    cancelled, working, job_inbox = threading.Event(), threading.Event(), Inbox()

    def listen() -> None:
        try:
            stream = channel.stream()
            while (message := protocol.read(stream)) is not None:
                if message.get("cancel"):
                    cancelled.set()
                elif "tell" in message:
                    job_inbox.put(notice_of(message["tell"]))
                else:
                    job_inbox.clear()
                    cancelled.clear()  # here, not when the job starts: it may be cancelled before that
                    inbox.put(message)
        except Exception as error:  # noqa: BLE001 - the two sides are out of step, and the node starts another
            with contextlib.suppress(Exception):
                _log.error("what the node sent cannot be read, the model process ends: %s", brief(error))
        os._exit(0)  # the node is gone: nothing will read a result

    def beat() -> None:
        while working.wait():
            with contextlib.suppress(OSError):  # the listening thread ends the process
                channel.send(Heartbeat(cpu_us=int(time.process_time() * 1e6)))
            time.sleep(heartbeat)

    for target in (listen, beat):
        threading.Thread(target=target, name=f"kvswap-{target.__name__}", daemon=True).start()
    if make_jobs is None:
        from kvswap.worker.jobs import Jobs

        make_jobs = Jobs
    jobs = make_jobs(channel.send, cancelled, job_inbox)
    while True:
        message = inbox.get()
        working.set()
        job, began, used = str(message.get("job"))[:40], time.monotonic(), time.process_time()
        answer = sendable(answer_of(jobs, message))
        spent = time.monotonic() - began, time.process_time() - used
        _log.info("job %s: %s, %.3f s, %.3f CPU-s", job, "failed" if answer.error is not None else "done", *spent)
        working.clear()
        channel.send(answer)


def answer_of(jobs: _JobRunner, message: dict[str, Any]) -> JobEnd:
    """Do one job and return its end: the result, or its error with the traceback for the node's log."""
    doing = f"the job {str(message.get('job'))[:40]!r}"
    try:
        return JobEnd(result=jobs.run(message))
    except Exception as error:  # noqa: BLE001 - the boundary of a process: report, live on
        failure = as_kvswap_error(error, doing)
        if failure.origin is None:
            return JobEnd(error=failure.to_dict())
        if isinstance(failure, Unexpected | LocalFault) and not isinstance(failure.origin, OSError):
            failure = WorkerFailed(f"the model process failed: {brief(failure.origin)}", hint=failure.hint)
        trace = "".join(traceback.format_exception(error))[-_TRACE:]
        return JobEnd(error=failure.to_dict(), trace=printable(trace, "\n"))


def sendable(answer: JobEnd) -> JobEnd:
    """Return the end of a job, or an error in its place if it cannot be packed, so that only this request fails."""
    try:
        protocol.frame(answer)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        failure = WorkerFailed(f"the model process made an answer that cannot be sent: {brief(error)}")
        return JobEnd(error=failure.to_dict())
    return answer


if __name__ == "__main__":
    sys.exit(main())
