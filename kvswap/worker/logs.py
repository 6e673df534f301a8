"""What the model process logs goes into the node's log, with the request that the job is done for.

The model process has no log file: its records travel as frames beside the events of its job, and the node, which knows
the request, writes them down.  Only this package's own loggers are forwarded: what a library says may quote a text.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable
from typing import Any

from kvswap.core.text import printable
from kvswap.worker import protocol

_LINE = 2_000  # characters of a message
_TRACE = 16_384


class _Forward(logging.Handler):
    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._send_frame = send

    def emit(self, record: logging.LogRecord) -> None:
        frame = {
            "event": protocol.LOG,
            "level": record.levelno,
            "logger": record.name,
            "message": printable(record.getMessage())[:_LINE],
        }
        if record.exc_info and record.exc_info[1] is not None:
            frame["trace"] = printable("".join(traceback.format_exception(record.exc_info[1])), "\n")[-_TRACE:]
        with contextlib.suppress(OSError):  # the node is gone
            self._send_frame(frame)


def forward(send: Callable[[dict[str, Any]], None]) -> None:
    """Send what this process logs from now on to the node, frame by frame."""
    logger = logging.getLogger("kvswap")
    logger.addHandler(_Forward(send))
    logger.setLevel(logging.DEBUG)  # the node knows what its log is to hold
    logger.propagate = False


def write(frame: dict[str, Any], pid: int | None) -> None:
    """Write a frame of `forward` into the log of this process, as from the process `pid`.

    The request is that of the caller's task.  A frame of another form is passed over.
    """
    level, name, message = frame.get("level"), frame.get("logger"), frame.get("message")
    if not (
        isinstance(level, int) and isinstance(name, str) and name.startswith("kvswap") and isinstance(message, str)
    ):
        return
    logger = logging.getLogger(name[:100])
    if not logger.isEnabledFor(level):
        return
    extra = {"trace": str(frame["trace"])[-_TRACE:]} if "trace" in frame else {}
    record = logger.makeRecord(logger.name, level, "", 0, "%s", (printable(message)[:_LINE],), None, extra=extra)
    record.process = pid or record.process
    logger.handle(record)
