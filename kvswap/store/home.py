"""The home directory of a node: its user's alone, held by one process, with a little room for a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from kvswap.core.atomic import clear_unfinished
from kvswap.core.errors import KvswapError, LocalFault, StoreFull, UsageError
from kvswap.store.lock import hold

_RESERVE_BYTES = 64 << 10
_LARGE_DISK_BYTES = 1 << 20  # free on the disk, before some of it is reserved
_PRIVATE = ("*.sqlite3", "*.sqlite3-wal", "*.sqlite3-shm", "*.json", "*.log", "config.toml", "store", "keys")


class Home:
    """A home directory that this process holds until `close`."""

    def __init__(self, path: Path) -> None:
        """Make the directory, close it to others and lock it.

        Raises `StoreLocked` when another process has it, `UsageError` or `LocalFault` when it cannot be a home.
        """
        self.path = path
        self._reserve = path / "reserve"
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = hold(path, path)
        except OSError as error:
            raise _no_home(path, error) from error
        try:
            self._close_to_others()
            self._try_to_write()
            clear_unfinished(path)
            for directory in (p for p in path.iterdir() if p.is_dir()):
                clear_unfinished(directory)
            self.maintain()
        except BaseException:
            self.close()
            raise

    def _close_to_others(self) -> None:
        found = self.path.stat()
        if not stat.S_IMODE(found.st_mode) & 0o077:
            return
        try:
            self.path.chmod(0o700)
        except OSError as error:
            raise LocalFault(
                f"the home {self.path} can be read by others, and its mode cannot be changed: {error.strerror}",
                cause="it belongs to another user, or lies on a read-only disk",
                hint=f"chmod 700 {self.path}, or another --home",
            ) from error
        for path in (p for pattern in _PRIVATE for p in self.path.glob(pattern)):
            with contextlib.suppress(OSError):
                mode = path.lstat().st_mode
                if stat.S_ISDIR(mode) or stat.S_ISREG(mode):  # what a link leads to is not this home's
                    path.chmod(0o700 if stat.S_ISDIR(mode) else 0o600)

    def _try_to_write(self) -> None:
        """Raise the error of a disk that refuses to be written; one that is full is good enough to start on."""
        probe = self.path / f".probe-{os.getpid()}"
        try:
            probe.touch(mode=0o600)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise _no_home(self.path, error) from error
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)

    def maintain(self) -> None:
        """Reserve a little room for what a start on a full disk has to write, while there is room for it."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self.path)
            if not self._reserve.exists() and disk.f_bavail * disk.f_frsize > _LARGE_DISK_BYTES:
                self._reserve.write_bytes(bytes(_RESERVE_BYTES))

    def release(self) -> bool:
        """Give the reserved room back; False when there is none."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Unlock the home, so that another process can hold it."""
        os.close(self._lock)


def _no_home(path: Path, error: OSError) -> KvswapError:
    """Make the error of a directory that cannot be a home: one line for people, and no traceback in the log."""
    what, elsewhere = f"{path} cannot be a home: {error.strerror}", "kvswap --home DIRECTORY"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return UsageError(what, cause="a file lies in its place", hint=elsewhere)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(what, cause="the disk is full", hint="free space on the disk, or another --home")
    if error.errno == errno.EROFS:
        return LocalFault(what, cause="the file system is read-only", hint=elsewhere)
    if isinstance(error, PermissionError):
        return LocalFault(what, cause="it belongs to another user, or its mode forbids it", hint=elsewhere)
    return LocalFault(what, cause="nothing can be made where it should be", hint=elsewhere)
