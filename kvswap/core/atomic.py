"""Files that are replaced as a whole: readers see the old one or the new one, and a failed write leaves nothing.

Everything in kvswap that writes a file under another name and renames it does so here: `replacing` for what is written
in pieces, `write_atomic` for bytes.  What a killed process leaves has a name that `clear_unfinished` knows.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NUMBERS = itertools.count()
_UNFINISHED = re.compile(r"\..+\.(\d+)-\d+\.part(-journal)?")  # the latter: of SQLite


class Unfinished(NamedTuple):
    """A file that is being written: its path, and a descriptor that is open for reading and writing."""

    path: Path
    descriptor: int

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes.  Raises `OSError`."""
        left = memoryview(data)
        while left:
            left = left[os.write(self.descriptor, left) :]


@contextlib.contextmanager
def replacing(
    target: Path,
    *,
    scratch: Path | None = None,
    synced: bool = True,
    named: bool = True,
    mkdir: bool = False,
    private: bool = True,
) -> Iterator[Unfinished]:
    """Make a new file, which takes the place of `target` when the block ends well.

    With `private` only its user may read it; else who may is as of any new file.
    `scratch`: the directory of the unfinished file, on the same file system; by default the target's own.  `synced`:
    the content is on disk before the name is; `named`: the name is on disk too when the block has ended, as far as the
    file system does that.  `mkdir`: make directories that are missing.  Raises `OSError`; whatever is raised, `target`
    is as it was and the new file is gone.
    """
    path = (scratch or target.parent) / f".{target.name[:100]}.{os.getpid()}-{next(_NUMBERS)}.part"
    descriptor = _created(path, mkdir, 0o600 if private else 0o666)
    try:
        try:
            yield Unfinished(path, descriptor)
            if synced:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            os.replace(path, target)
        except FileNotFoundError:
            if not mkdir:
                raise
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.replace(path, target)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    if named:
        sync_directory(target.parent)


def _created(path: Path, mkdir: bool, mode: int) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags, mode)
    except FileNotFoundError:  # somebody removed the directory
        if not mkdir:
            raise
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except FileExistsError:  # left by a process that had this one's number, and was killed
        path.unlink()
    return os.open(path, flags, mode)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Replace a file atomically by one that only its user may read; with `durable` it is on disk when this returns.

    Raises `OSError`; then the file is as it was.
    """
    with replacing(path, synced=durable, named=durable) as new:
        new.write(data)


def clear_unfinished(directory: Path) -> None:
    """Delete what processes that do not run any more left half-written in a directory.  Best effort."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            found = _UNFINISHED.fullmatch(entry.name)
            if found and not is_running(int(found[1])):
                with contextlib.suppress(OSError):
                    Path(entry.path).unlink()


def is_running(pid: int) -> bool:
    """Return True if there is a process of this number, whoever's it is."""
    try:
        os.kill(pid, 0) if pid > 0 else None
    except PermissionError:  # somebody else's
        return True
    except (OSError, OverflowError):
        return False
    return pid > 0


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, as far as its file system does that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
