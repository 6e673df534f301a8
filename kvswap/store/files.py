"""Chunk files: `chunks/<last two characters>/<cid>`, written whole or not at all.

A file appears under its name only when it is written whole (temp, rename), and synced before that unless the
caller does so later.  The rename itself may be lost with the power: then a listed file is missing, which every
reader notices, and it is fetched again - cheaper than a flush of the directory for each chunk.  The name is the
digest, so a reader can always tell a right file from a wrong one.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from kvswap.core.errors import NotFound, StoreFull, UsageError
from kvswap.core.ids import Cid
from kvswap.store import direct

_PIECE = 256 * 1024


def chunk_path(chunks: Path, cid: Cid) -> Path:
    """Where a chunk is below the `chunks` directory; readers of other processes use it too."""
    name = str(cid)
    return chunks / name[-2:] / name


def chunk_reader(chunks: Path) -> Callable[[Cid], bytes]:
    """What reads chunks below that directory in another process than the node's; whoever reads checks.

    It raises `NotFound`.
    """

    def read(cid: Cid) -> bytes:
        try:
            return chunk_path(chunks, cid).read_bytes()
        except FileNotFoundError:
            raise NotFound(
                f"chunk {cid} is not in the store any more", cause="it was removed meanwhile", hint="kvswap fetch"
            ) from None

    return read


class ChunkFile:
    """An open chunk, read in pieces."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        found = os.fstat(descriptor)
        self.length = found.st_size
        self.state = (found.st_size, found.st_mtime_ns)  # another one: the file was written to

    def read_into(self, into: memoryview, at: int) -> int:
        """Fill `into` from the offset `at`; how many bytes there were, 0 at the end."""
        return os.preadv(self._descriptor, [into], at)

    def read(self) -> bytes:
        """The whole chunk."""
        whole = bytearray(self.length)
        view, at = memoryview(whole), 0
        while at < self.length and (size := self.read_into(view[at:], at)):
            at += size
        return bytes(view[:at])

    def id(self) -> Cid:
        """What the bytes are, whatever the name says."""
        hasher, at, view = blake3(), 0, memoryview(bytearray(min(_PIECE, self.length)))
        while size := self.read_into(view, at) if view else 0:
            hasher.update(view[:size])
            at += size
        return Cid(hasher.digest())


class ChunkFiles:
    """The directory of chunks."""

    def __init__(self, root: Path) -> None:
        self._root = root / "chunks"
        self._temporary = root / "tmp"
        self._quarantine = root / "quarantine"
        for directory in (self._root, self._temporary, self._quarantine):
            directory.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count()

    def path(self, cid: Cid) -> Path:
        return chunk_path(self._root, cid)

    @property
    def directory(self) -> Path:
        return self._root

    def write(
        self,
        cid: Cid,
        data: bytes | memoryview,
        owner: mmap.mmap | None = None,
        *,
        synced: bool = True,
        cached: bool = False,
    ) -> None:
        """Store the bytes under their name.  Raises `StoreFull`; the store stays as it was.

        `owner` and `cached`: see `direct.write`.  Unless `synced` it is the caller's to `sync` the file later.
        """
        target = self.path(cid)
        temporary: Path | None = self._temporary / f"{os.getpid()}-{next(self._numbers)}"
        try:
            descriptor = os.open(str(temporary), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                direct.write(descriptor, data, owner, cached=cached)
                if synced:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            try:
                os.replace(str(temporary), target)
            except FileNotFoundError:
                target.parent.mkdir(exist_ok=True)
                os.replace(str(temporary), target)
            temporary = None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StoreFull(
                    f"no room for chunk {cid} ({len(data)} bytes)",
                    cause="the disk is full",
                    hint="kvswap gc",
                ) from error
            raise
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def sync(self, cid: Cid) -> None:
        """Make a file durable.  Raises `OSError`."""
        descriptor = os.open(self.path(cid), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def open(self, cid: Cid) -> Iterator[ChunkFile]:
        """The bytes as they are on disk; the caller checks them.  Raises `FileNotFoundError`."""
        descriptor = os.open(self.path(cid), os.O_RDONLY)
        try:
            yield ChunkFile(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, cid: Cid) -> None:
        self.path(cid).unlink(missing_ok=True)

    def set_aside(self, cid: Cid) -> None:
        """Move a wrong file out of the way, kept for whoever wants to know why."""
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path(cid), self._quarantine / str(cid))

    def clear_temporary(self) -> None:
        """Drop what a crash left half-written."""
        for path in self._temporary.iterdir():
            path.unlink(missing_ok=True)

    def all(self) -> Iterator[Cid]:
        """Every chunk file; other names are passed over."""
        for directory in sorted(self._root.iterdir()):
            for path in sorted(directory.iterdir()) if directory.is_dir() else ():
                try:
                    yield Cid.parse(path.name)
                except UsageError:
                    continue


def set_aside(database: Path) -> None:
    """A damaged SQLite file, out of the way of a new one."""
    os.replace(database, database.with_suffix(".damaged"))
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
