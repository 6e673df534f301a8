"""Direct writes: a file written past the page cache.

A chunk is written once, made durable, and read later or never.  Through the page cache that costs
1.4 to 2 CPU-seconds a gigabyte on the machine where it was measured, with `O_DIRECT` 0.05, at four
times the rate (`docs/adr/0008-direct-writes.md`).  The kernel wants page-aligned memory and whole
sectors: memory comes from `aligned`, the odd end of a file is written padded and cut off again.
Where the file system or the platform cannot do it, the file is written the ordinary way.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading

_PAGE = mmap.PAGESIZE
_WORTH_IT = 256 * 1024  # below this the page cache is as good
_scratch = threading.local()


def aligned(length: int) -> mmap.mmap:
    """Allocate page-aligned memory for at least `length` bytes, a whole number of pages."""
    return mmap.mmap(-1, max(1, -(-length // _PAGE)) * _PAGE)


def write(descriptor: int, data: bytes | memoryview, owner: mmap.mmap | None = None, *, cached: bool = False) -> None:
    """Write `data` at the start of an empty file and cut it to that length.

    `cached`: write through the page cache after all, for a file that is read soon.
    `owner` is the `aligned` memory that `data` is the beginning of, if it is: then nothing is copied.
    Raises `OSError`.
    """
    if not cached and len(data) >= _WORTH_IT and hasattr(os, "O_DIRECT") and _direct(descriptor, True):
        try:
            whole = -(-len(data) // _PAGE) * _PAGE
            _write_all(descriptor, memoryview(owner if owner is not None else _copied(data))[:whole])
            os.ftruncate(descriptor, len(data))
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.ftruncate(descriptor, 0)
        finally:
            _direct(descriptor, False)
    _write_all(descriptor, memoryview(data))


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _direct(descriptor: int, on: bool) -> bool:
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags & ~os.O_DIRECT)
    except OSError:
        return False
    return True


def _copied(data: bytes | memoryview) -> mmap.mmap:
    """Copy `data` into this thread's aligned scratch memory, and return that."""
    held: mmap.mmap | None = getattr(_scratch, "memory", None)
    if held is None or len(held) < len(data):
        held = _scratch.memory = aligned(len(data))
    held[: len(data)] = data
    return held
