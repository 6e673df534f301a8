"""The lock of a directory: one process holds it, and it ends with the process however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kvswap.core.errors import StoreLocked
from kvswap.core.files import check_regular


def hold(path: Path, what: Path) -> int:
    """Lock a directory, or a file, which is made if it is not there; return the descriptor that holds the lock.

    The lock is held until the descriptor is closed.  Raises `StoreLocked`, naming `what`, when another process has it,
    and `OSError`.
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
