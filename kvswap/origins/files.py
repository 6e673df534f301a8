"""Origins that are directories: a share, a USB disk, the directory behind a web server.

No symbolic link below the directory is followed, and nothing but regular files is read: whoever else writes there
chooses neither what this node reads nor where it writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from kvswap.core.errors import IntegrityError, NetworkTimeout, NotFound, OriginError, OriginRefused
from kvswap.core.ids import blake3_digest
from kvswap.core.limits import LIMITS
from kvswap.core.origin_settings import directory_of
from kvswap.core.text import printable
from kvswap.origins.port import NEW, Blob, Changed, Listed, OnBytes, checked_name, is_name

T = TypeVar("T")
_PIECE = 1 << 20  # read at a time: a drive that hangs keeps a thread, and nobody's memory
_THREADS = 8
_LOCK = ".lock"
_LOCK_PAUSE_SECONDS = 0.02
_NUMBERS = itertools.count()
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class FileBackend:
    """A directory, as a place of files."""

    writes = True

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = directory_of(url)
        # Threads of its own: a network drive that hangs must not hold up the rest of the node.
        self._threads = ThreadPoolExecutor(_THREADS, "kvswap-origin")

    async def check(self) -> None:
        """Look at the directory, as `Backend.check`."""
        await self._run(os.listdir, self._root)

    async def get(self, name: str, most: int) -> Blob:
        """Read a file, as `Backend.get`."""
        return await self._run(self._get, checked_name(name), most)

    async def read_into(self, name: str, into: memoryview, on_bytes: OnBytes, start: int | None = None) -> None:
        """Read a file or a part of it, as `Backend.read_into`."""
        descriptor, size = await self._run(self._opened, checked_name(name))
        try:
            end = size if start is None else start + len(into)
            if end > size or (start is None and size != len(into)):
                raise IntegrityError(f"{self.url} has {size} bytes as {name}, and {len(into)} are wanted")
            have = 0
            while have < len(into):
                length = min(_PIECE, len(into) - have)
                data = await self._run(os.pread, descriptor, length, (start or 0) + have, seconds=LIMITS.stall_seconds)
                if not data:
                    raise OriginError(f"{self.url}: {name} became shorter while it was read")
                into[have : have + len(data)] = data
                have += len(data)
                on_bytes(len(data))
        finally:
            os.close(descriptor)

    async def put(self, name: str, data: bytes, tag: str | None = None) -> None:
        """Write a file, as `Backend.put`."""
        await self._run(self._put, checked_name(name), data, tag, seconds=LIMITS.origin_upload_seconds)

    async def same(self, name: str, data: bytes) -> bool:
        """Compare a file with `data`, as `Backend.same`."""
        return await self._run(self._same, checked_name(name), data, seconds=LIMITS.origin_upload_seconds)

    async def delete(self, name: str) -> None:
        """Remove a file, as `Backend.delete`."""
        await self._run(self._delete, checked_name(name))

    async def files(self, prefix: str) -> AsyncIterator[Listed]:
        """List files, as `Backend.files`."""
        rows = self._listed(prefix)
        while page := await self._run(lambda: list(itertools.islice(rows, 512))):
            for row in page:
                yield row

    async def close(self) -> None:
        """End the threads; one that hangs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # -- in a thread -------------------------------------------------------------------------------

    async def _run(self, work: Callable[..., T], *arguments: object, seconds: float = LIMITS.origin_seconds) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                return await loop.run_in_executor(self._threads, work, *arguments)
        except TimeoutError as error:
            raise NetworkTimeout(
                f"{self.url} does not answer", cause="a network drive that went away", hint=f"ls {self._root}"
            ) from error
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> NotFound | OriginError:
        why = printable(error.strerror or str(error))
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            if not os.path.isdir(self._root):  # noqa: PTH112 - on the way of an error
                cause = "it is not mounted, or a typing error"
                return OriginError(f"{self.url} is not there", cause=cause, hint=f"ls {self._root}")
            if error.errno == errno.ENOENT:
                return NotFound(f"{self.url} does not have it")
        if error.errno in _REFUSED:
            cause = "it is read-only, or belongs to another user"
            return OriginRefused(f"{self.url} refuses it: {why}", cause=cause, hint=f"ls -ld {self._root}")
        if error.errno in _FULL:
            return OriginError(f"{self.url} is full", cause="no space is left; nothing was lost", hint="df")
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):
            return OriginError(
                f"{self.url} has a link, or a file, in the place of a directory", cause="links are not followed there"
            )
        return OriginError(f"{self.url} failed: {why}", cause="the disk, or the way to it", hint=f"ls {self._root}")

    @contextlib.contextmanager
    def _directory(self, parts: list[str], *, make: bool = False) -> Iterator[int]:
        """Open a directory below the root, part by part, without following links."""
        at = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=at)
                        with contextlib.suppress(OSError):  # of a file system without modes
                            os.chmod(part, self._mode(0o777), dir_fd=at)
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
                os.close(at)
                at = below
            yield at
        finally:
            os.close(at)

    def _mode(self, most: int) -> int:
        """Return a mode for what is made here: whoever may read the directory may read what is published in it."""
        return os.stat(self._root).st_mode & most  # noqa: PTH116

    def _opened(self, name: str) -> tuple[int, int]:
        """Open a regular file for reading, and return its descriptor and size."""
        *parts, last = name.split("/")
        with self._directory(parts) as at:
            descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            raise OriginError(f"{self.url}: {name} is no regular file")
        return descriptor, found.st_size

    def _get(self, name: str, most: int) -> Blob:
        descriptor, size = self._opened(name)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            data = file.read(most + 1)
        if size > most or len(data) > most:
            raise OriginError(f"{self.url}: {name} has over {most} bytes", cause="it is something else")
        return Blob(data, blake3_digest(data).hex())

    def _same(self, name: str, data: bytes) -> bool:
        try:
            descriptor, size = self._opened(name)
        except FileNotFoundError:
            return False
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
            return size == len(data) and file.read() == data

    def _put(self, name: str, data: bytes, tag: str | None) -> None:
        *parts, last = name.split("/")
        with self._directory(parts, make=True) as at, self._locked() if tag is not None else contextlib.nullcontext():
            if tag is not None and self._tag(name) != tag:
                raise Changed(f"{self.url}: somebody else wrote {name} meanwhile")
            unfinished = f".{last[:100]}.{os.getpid()}-{next(_NUMBERS)}.part"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(unfinished, flags, 0o600, dir_fd=at)
            try:
                with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor
                    with contextlib.suppress(OSError):
                        os.fchmod(descriptor, self._mode(0o666))
                    file.write(data)
                    file.flush()
                    os.fsync(descriptor)
                os.replace(unfinished, last, src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished, dir_fd=at)
                raise

    def _tag(self, name: str) -> str:
        try:
            return self._get(name, LIMITS.message_bytes).tag
        except FileNotFoundError:
            return NEW

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of all conditional writes to this directory, from whichever machine."""
        with self._directory([]) as at:
            lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, self._mode(0o666), dir_fd=at)
        try:
            deadline = time.monotonic() + LIMITS.origin_seconds
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise OriginError(f"{self.url} stays locked", cause="another node writes, or hangs") from None
                    time.sleep(_LOCK_PAUSE_SECONDS)
            yield
        finally:
            os.close(lock)

    def _delete(self, name: str) -> None:
        *parts, last = name.split("/")
        with contextlib.suppress(FileNotFoundError), self._directory(parts) as at:
            os.unlink(last, dir_fd=at)

    def _listed(self, prefix: str) -> Iterator[Listed]:
        below = [[part for part in prefix.split("/") if part]]
        while below:
            parts = below.pop()
            try:
                with self._directory(parts) as at, os.scandir(at) as entries:
                    found = sorted((e.name, e.stat(follow_symlinks=False)) for e in entries)
            except FileNotFoundError:
                continue
            for name, status in found:
                whole = "/".join([*parts, name])
                if stat.S_ISDIR(status.st_mode):
                    below.append([*parts, name])
                elif is_name(whole) and stat.S_ISREG(status.st_mode):
                    yield Listed(whole, status.st_size)
