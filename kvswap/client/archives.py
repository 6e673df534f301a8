"""Archives on the caller's side: written whole or not at all, and looked through before they are sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from kvswap.api.archives import Exported
from kvswap.api.events import ExportEvent, ImportEvent, ProgressEvent
from kvswap.artifact.archive import ArchiveReader
from kvswap.core.atomic import Unfinished, replacing
from kvswap.core.errors import UsageError
from kvswap.core.failures import as_kvswap_error
from kvswap.core.files import check_place, kind_of
from kvswap.core.text import printable

OnEvent = Callable[[ProgressEvent], None]
_PIECE = 1 << 20
_REPORT_SECONDS = 0.2


class ByteProgress:
    """A progress report of bytes that come or go, a few times a second."""

    def __init__(self, event: type[ExportEvent | ImportEvent], total: int | None, on_event: OnEvent | None) -> None:
        self._event, self._on_event = event, on_event
        self.total = total
        self.bytes = 0
        self._began = time.monotonic()
        self._described = 0.0

    def add(self, count: int) -> None:
        """Count bytes."""
        self.bytes += count
        now = time.monotonic()
        if self._on_event is None or (self.bytes != self.total and now < self._described + _REPORT_SECONDS):
            return
        self._described = now
        seconds = round(now - self._began, 4)
        self._on_event(self._event(bytes=self.bytes, total_bytes=self.total, seconds=seconds))


class Writing:
    """An archive on its way into a file, which gets its name at the end, or into a stream."""

    def __init__(self, to: str | Path | IO[bytes], on_event: OnEvent | None) -> None:
        self._path = Path(to) if isinstance(to, str | Path) else None
        self._stream: IO[bytes] | None = None if isinstance(to, str | Path) else to
        self._replacing: AbstractContextManager[Unfinished] | None = None
        self._file: Unfinished | None = None
        self._reader = ArchiveReader(keep=False)
        self._digest = hashlib.sha256()
        self._left_out = 0
        self._progress = ByteProgress(ExportEvent, None, on_event)

    def __enter__(self) -> Self:
        if self._path is not None:
            check_place(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._replacing is not None:  # it was not done
            raised = error or InterruptedError()
            self._replacing.__exit__(type(raised), raised, trace)

    def head(self, headers: Mapping[str, str]) -> None:
        """Take note of what the answer says of itself, and make the file: now there is something to write."""
        self._progress.total = int(headers["Content-Length"])
        self._left_out = int(headers.get("Kvswap-Left-Out", "0"))
        if self._path is None:
            return
        try:
            self._replacing = replacing(self._path, named=False, private=False)
            self._file = self._replacing.__enter__()
        except OSError as error:
            raise self._failed(error) from error

    def write(self, piece: bytes) -> None:
        """Write a piece.  Raises `StoreFull` or `LocalFault` where the disk refuses, and `MalformedArchive`."""
        for _ in self._reader.feed(piece):
            pass
        self._digest.update(piece)
        to = self._stream or self._file
        assert to is not None  # noqa: S101 - `head` came before
        try:
            to.write(piece)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failed(error) from error
        self._progress.add(len(piece))

    def done(self) -> Exported:
        """Give the file its name, and say what is in it.  Raises `MalformedArchive` for one that is cut off."""
        self._reader.end()
        try:
            if self._stream is not None:
                self._stream.flush()
            elif self._replacing is not None:
                ending, self._replacing = self._replacing, None
                ending.__exit__(None, None, None)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failed(error) from error
        return Exported(
            artifact=str(self._reader.artifact),
            file=str(self._path) if self._path is not None else "-",
            bytes=self._progress.bytes,
            files=self._reader.files,
            left_out=self._left_out,
            sha256=self._digest.hexdigest(),
        )

    def _failed(self, error: OSError) -> Exception:
        return as_kvswap_error(error, f"writing {printable(str(self._path or 'the archive'))}")


def read_archive(source: str | Path | IO[bytes], on_event: OnEvent | None) -> Iterator[bytes]:
    """Yield the bytes of an archive.  What is none, or is cut off, ends before the daemon has to say so.

    Raises `MalformedArchive`, or `UsageError` for a file that cannot be read.
    """
    with _opened(source) as file:
        found = os.fstat(file.fileno()) if hasattr(file, "fileno") and not _in_memory(file) else None
        size = found.st_size if found is not None and stat.S_ISREG(found.st_mode) else None
        reader, progress = ArchiveReader(keep=False), ByteProgress(ImportEvent, size, on_event)
        while piece := file.read(_PIECE):
            for _ in reader.feed(piece):
                pass
            yield piece
            progress.add(len(piece))
        reader.end()


def _in_memory(file: IO[bytes]) -> bool:
    try:
        file.fileno()
    except OSError:  # io.UnsupportedOperation is one
        return True
    return False


@contextlib.contextmanager
def _opened(source: str | Path | IO[bytes]) -> Iterator[IO[bytes]]:
    if not isinstance(source, str | Path):
        yield source
        return
    name = printable(str(source))
    try:
        mode = Path(source).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise UsageError(f"{name} is {kind_of(mode)}", cause="an archive is a file", hint="name a file, or -")
        file = Path(source).open("rb")  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"{name} cannot be read: {cause}", hint=f"ls -l {name}") from error
    with file:
        yield file
