"""The log of a process: one line a record on standard error, tracebacks only in `kvswap.log` of the home."""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys
import threading
from pathlib import Path
from types import TracebackType

from kvswap.core.failures import said
from kvswap.core.files import check_regular
from kvswap.core.text import printable

NAME = "kvswap.log"
_BYTES = 1 << 20  # of the log file, and of the one before it
_LINE = 2_000
_log = logging.getLogger("kvswap.failures")


class _Brief(logging.Formatter):
    """A formatter of one printable line; instead of a traceback, what was raised."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        raised = record.exc_info[1] if record.exc_info else None
        if raised is not None and said(raised) not in text:
            text = f"{text} ({said(raised)})"
        return f"{record.levelname} {record.name}: {printable(text)[:_LINE]}"


class _Full(logging.Formatter):
    """A formatter that shows everything, also the traceback that another process sent, as `trace` of the record."""

    def format(self, record: logging.LogRecord) -> str:
        text, trace = super().format(record), getattr(record, "trace", None)
        return f"{text}\n{trace}" if trace else text


class _File(logging.handlers.RotatingFileHandler):
    """A log file made with the first record, readable by the user alone; a disk that refuses it stops nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace", delay=True)

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


def start_log(home: Path | None, *, stderr: bool = True) -> None:
    """Send the log records of this process to standard error (unless `stderr` is false) and to `kvswap.log` in `home`.

    Exceptions that nobody caught in a thread, and those of finalisers, go the same way.  A second call replaces the
    first; the file is made with the first record, and only where `home` exists.
    """
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _File | _Stderr | logging.NullHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(logging.NullHandler())  # without any handler Python would print tracebacks itself
    if stderr and sys.stderr is not None:
        handler = _Stderr()
        handler.setFormatter(_Brief())
        root.addHandler(handler)
    if home is not None:
        file = _File(home / NAME)
        file.setFormatter(_Full("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
        root.addHandler(file)
    root.setLevel(logging.WARNING)
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
