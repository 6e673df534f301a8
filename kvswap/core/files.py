"""Reading of files, kvswap's own and the user's: of bounded size, of a kind that ends, never waiting."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Callable
from pathlib import Path

from kvswap.core.errors import InvalidDocument, UsageError
from kvswap.core.failures import Misplaced, as_kvswap_error
from kvswap.core.text import printable

Note = Callable[[str], None]

_WRITER_SECONDS = 5.0  # to wait for a writer to open a pipe
_QUIET_SECONDS = 1.0  # until the user is told that a pipe is waited for
_PIECE = 1 << 20
_READING = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY  # NONBLOCK, as opening a pipe would wait


def kind_of(mode: int) -> str:
    """Name the kind of a file, given the mode that `stat` gives."""
    for test, name in (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a disk"),
    ):
        if test(mode):
            return name
    return "no regular file"


def exists(path: Path) -> bool:
    """Return True if there is something under this path; False also for a name that no file can have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def open_regular(path: Path) -> int:
    """Open a regular file of kvswap's own for reading and return its descriptor, without waiting for anything.

    Raises `Misplaced` where something else lies under its name, or `OSError`.
    """
    try:
        descriptor = os.open(path, _READING)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise Misplaced(path, f"{_lying(path)}, not a regular file") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise Misplaced(path, f"{kind_of(mode)}, not a regular file")
    return descriptor


def read_regular(path: Path, limit: int) -> bytes:
    """Read the whole of a file of kvswap's own.

    Raises `Misplaced` where it is larger than `limit` bytes or not a regular file, or `OSError`.
    """
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise Misplaced(path, f"larger than {limit} bytes")
        return file.read()


def check_regular(path: Path) -> None:
    """Raise `Misplaced` where something other than a regular file lies under a path that a library is about to open."""
    try:
        mode = path.stat().st_mode
    except OSError:  # the caller that opens it will see
        return
    if not stat.S_ISREG(mode):
        raise Misplaced(path, f"{kind_of(mode)}, not a regular file")


def _lying(path: Path) -> str:
    try:
        return kind_of(path.stat().st_mode)
    except OSError:
        return "something that cannot be opened"


def read_file(path: Path, limit: int, *, streams: bool = False, note: Note = lambda text: None) -> bytes:
    """Read a file, at most one byte more than `limit`, so that the caller can tell that it is too large.

    With `streams` pipes and devices are read too, to their end: `note` is called with a message when one keeps the
    reader waiting, and a pipe that nobody writes to is given up.  Raises `UsageError` for another kind of file, or one
    that cannot be read.
    """
    name = printable(str(path))
    try:
        descriptor = os.open(path, _READING)
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return _read(descriptor, limit)
        if not streams or not (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
            raise UsageError(
                f"{name} is {kind_of(mode)}",
                cause="kvswap reads regular files here",
                hint="name a file" if not stat.S_ISFIFO(mode) else f"cat {name} > FILE, and name that",
            )
        return _read_stream(descriptor, limit, name, kind_of(mode), note)
    except OSError as error:
        raise _unreadable(name, error) from error
    finally:
        os.close(descriptor)


def read_text(path: Path, limit: int) -> str:
    """Read a small regular file as UTF-8 text.

    Raises `UsageError` for another kind of file, one of more than `limit` bytes, or one that is not UTF-8.
    """
    name = printable(str(path))
    data = read_file(path, limit)
    if len(data) > limit:
        raise UsageError(f"{name} is larger than {limit} bytes", cause="it is another file than meant")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})", cause="a binary file") from error


def check_place(path: Path) -> None:
    """Raise `UsageError` where no file can be made; called before the work whose result goes there."""
    name = printable(str(path))
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{name} cannot be written: its directory does not exist", cause="a typing error")
    if path.is_dir():
        raise UsageError(f"{name} cannot be written: it is a directory", cause="a typing error")


def _unreadable(name: str, error: Exception) -> UsageError:
    if isinstance(error, FileNotFoundError):
        return UsageError(f"{name} does not exist", cause="a typing error, or it is somewhere else", hint=f"ls {name}")
    problem = as_kvswap_error(error)
    made = UsageError(f"{name} cannot be read: {problem.message.removeprefix(f'{name}: ')}", cause=problem.cause)
    made.hint = f"ls -l {name}"
    return made


def _read(descriptor: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) <= limit and (piece := os.read(descriptor, min(_PIECE, limit + 1 - len(data)))):
        data += piece
    return bytes(data)


def _read_stream(descriptor: int, limit: int, name: str, kind: str, note: Note) -> bytes:
    data = bytearray()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    began, noted = time.monotonic(), False
    while len(data) <= limit:
        try:
            piece = os.read(descriptor, min(_PIECE, limit + 1 - len(data)))
        except BlockingIOError:  # somebody has it open for writing, and has not written yet
            piece = None
        if piece:
            data += piece
            continue
        gone = bool(data) or kind != "a pipe" or any(events & select.POLLHUP for _, events in poll.poll(0))
        if piece is not None and gone:  # the end; a pipe that nobody has opened yet looks alike, but for the hang-up
            break
        waited = time.monotonic() - began
        if waited > _WRITER_SECONDS and piece is not None:
            raise InvalidDocument(
                f"{name} is a pipe, and nobody writes to it",
                cause="the program that should is not running",
                hint=f"start it first, or write to {name} within {_WRITER_SECONDS:g} s",
            )
        if waited > _QUIET_SECONDS and not noted:
            noted = True
            note(f"waiting for {name}, which is {kind} ...")
        if piece is None:
            poll.poll(1000)
        else:
            time.sleep(0.05)
    return bytes(data)
