"""The log of a process: `kvswap.log` in the home, and warnings as one line each on standard error.

Modules log with `logging.getLogger(__name__)`.  Below WARNING, records say what happened with ids and numbers: no text
or tokens of a document, no key, no access token, and nothing that only members of a group know.  Tracebacks are in the
file alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
import time
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType

from kvswap.core.failures import brief
from kvswap.core.files import check_regular
from kvswap.core.text import printable

NAME = "kvswap.log"
_BYTES = 1 << 20  # of the log file, and of the one before it
_LINE = 2_000
_WAITING = 10_000  # records
_CLOSE_SECONDS = 1.0  # for what waits: a disk that hangs keeps no process from ending
_log = logging.getLogger("kvswap.failures")

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
REQUEST: ContextVar[str] = ContextVar("request", default="")
"""The id of the request that is being worked for; empty outside of one."""


def _note_request(record: logging.LogRecord) -> bool:
    """Put the id of the request on a record, in the thread and the task that made it."""
    if not hasattr(record, "request"):
        record.request = REQUEST.get()
    return True


class _Brief(logging.Formatter):
    """A formatter of one printable line; instead of a traceback, what was raised."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        raised = record.exc_info[1] if record.exc_info else None
        if raised is not None and brief(raised) not in text:
            text = f"{text} ({brief(raised)})"
        return f"{record.levelname} {record.name}: {printable(text)[:_LINE]}"


class _Full(logging.Formatter):
    """A formatter that shows everything, also the traceback that another process sent, as `trace` of the record."""

    def format(self, record: logging.LogRecord) -> str:
        text, trace = super().format(record), getattr(record, "trace", None)
        request = getattr(record, "request", "")
        text = f"{text} [{request}]" if request and not record.exc_info else text
        return f"{text}\n{trace}" if trace else text


class _Json(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and where there are any event, request and trace."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        for name in ("event", "request", "trace"):
            if value := getattr(record, name, None):
                line[name] = value
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _File(logging.handlers.RotatingFileHandler):
    """A log file made with the first record, readable by the user alone; a disk that refuses it stops nothing.

    What is below WARNING is written by a thread of its own, so that an event loop that says what it does waits for no
    disk; of more than `_WAITING` that wait, the rest is dropped.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace", delay=True)
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING)
        self._writer: threading.Thread | None = None
        self._writing = threading.RLock()  # not the handler's own lock, for which the end of a process waits

    def handle(self, record: logging.LogRecord) -> bool:
        if not self.filter(record):
            return False
        if record.levelno >= logging.WARNING:
            with self._writing:
                self.emit(record)
            return True
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="kvswap-log", daemon=True)
            self._writer.start()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(record)
        return True

    def _write(self) -> None:
        while (record := self._waiting.get()) is not None:
            with self._writing:
                self.emit(record)

    def flush(self) -> None:
        if self._writing.acquire(timeout=_CLOSE_SECONDS):  # not while the disk hangs
            try:
                super().flush()
            finally:
                self._writing.release()

    def close(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._writer.join(_CLOSE_SECONDS)
        if self._writing.acquire(timeout=_CLOSE_SECONDS):
            try:
                super().close()
            finally:
                self._writing.release()

    def _open(self):  # type: ignore[no-untyped-def]
        path = Path(self.baseFilename)
        check_regular(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, self.mode, encoding=self.encoding, errors=self.errors)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            pass

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: there is no other place to say it."""


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: standard error is closed or full."""


def start_log(
    home: Path | None, *, stderr: bool = True, level: str = "warning", style: str = "text", verbose: bool = False
) -> None:
    """Send records of this process to standard error (unless `stderr` is false) and to `kvswap.log` in `home`.

    `level`, one of `LEVELS`, is that of the file; standard error gets warnings, and with `verbose` as much as the file.
    `style` is one of `FORMATS`.  Exceptions that nobody caught in a thread, and those of finalisers, go the same way.
    A second call replaces the first; the file is made with the first record, only where `home` exists.
    """
    root, lowest = logging.getLogger(), logging.getLevelName(level.upper())
    for old in [h for h in root.handlers if isinstance(h, _File | _Stderr | logging.NullHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(logging.NullHandler())  # without any handler Python would print tracebacks itself
    if stderr and sys.stderr is not None:
        handler = _Stderr()
        handler.setFormatter(_Brief() if style == "text" else _Json())
        handler.setLevel(lowest if verbose else max(lowest, logging.WARNING))
        handler.addFilter(_note_request)
        root.addHandler(handler)
    if home is not None:
        file = _File(home / NAME)
        plain = _Full("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
        file.setFormatter(plain if style == "text" else _Json())
        file.addFilter(_note_request)
        root.addHandler(file)
    root.setLevel(max(lowest, logging.WARNING))
    logging.getLogger("kvswap").setLevel(lowest)
    threading.excepthook = _of_thread
    sys.unraisablehook = _of_finaliser


def _logged(what: str, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    _log.error("%s", what, exc_info=(kind, error or kind(), trace))


def _of_thread(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_type is not SystemExit:
        name = raised.thread.name if raised.thread is not None else "a thread"
        _logged(f"the thread {name} ended", raised.exc_type, raised.exc_value, raised.exc_traceback)


def _of_finaliser(raised: sys.UnraisableHookArgs) -> None:
    _logged(raised.err_msg or "ignored in a finaliser", raised.exc_type, raised.exc_value, raised.exc_traceback)
