"""What the model process logs goes into the node's log, with the request that the job is done for.

The model process has no log file: its records travel as frames beside the events of its job, and the node, which knows
the request, writes them down.  Only this package's own loggers are forwarded: what a library says may quote a text.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable

from kvswap.core.text import printable
from kvswap.worker.conversation import LogFrame

_LINE = 2_000  # characters of a message
_TRACE = 16_384


class _Forward(logging.Handler):
    def __init__(self, send: Callable[[LogFrame], None]) -> None:
        super().__init__()
        self._send_frame = send

    def emit(self, record: logging.LogRecord) -> None:
        trace = None
        if record.exc_info and record.exc_info[1] is not None:
            trace = printable("".join(traceback.format_exception(record.exc_info[1])), "\n")[-_TRACE:]
        message = printable(record.getMessage())[:_LINE]
        with contextlib.suppress(OSError):  # the node is gone
            self._send_frame(LogFrame(level=record.levelno, logger=record.name, message=message, trace=trace))


def forward(send: Callable[[LogFrame], None]) -> None:
    """Send what this process logs from now on to the node, frame by frame."""
    logger = logging.getLogger("kvswap")
    logger.addHandler(_Forward(send))
    logger.setLevel(logging.DEBUG)  # the node knows what its log is to hold
    logger.propagate = False


def write(frame: LogFrame, pid: int | None) -> None:
    """Write a frame of `forward` into the log of this process, as from the process `pid`.

    The request is that of the caller's task.  A record of a logger that is not of this package is passed over.
    """
    if not frame.logger.startswith("kvswap"):
        return
    logger = logging.getLogger(frame.logger[:100])
    if not logger.isEnabledFor(frame.level):
        return
    extra = {"trace": frame.trace[-_TRACE:]} if frame.trace is not None else {}
    message = printable(frame.message)[:_LINE]
    record = logger.makeRecord(logger.name, frame.level, "", 0, "%s", (message,), None, extra=extra)
    record.process = pid or record.process
    logger.handle(record)
