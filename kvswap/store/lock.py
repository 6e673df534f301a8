"""One process on one directory: an advisory lock, which ends with the process however it ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kvswap.core.errors import StoreLocked
from kvswap.core.files import check_regular


def hold(path: Path, what: Path) -> int:
    """Lock a file, made if it is not there, or a directory; the descriptor holds the lock until it is closed.

    Raises `StoreLocked`, naming `what`, when another process has it, and `OSError`.
    """
    if not path.is_dir():
        check_regular(path)
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StoreLocked(
            f"{what} is in use by another process",
            cause="a kvswap daemon already runs on this home",
            hint="kvswap status",
        ) from error
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
