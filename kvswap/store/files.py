"""Chunk files: `chunks/<last two characters>/<cid>`, written whole or not at all.

A file appears under its name only after its bytes are on disk (temp, fsync, rename, fsync of the
directory).  The name is the digest, so a reader can always tell a right file from a wrong one.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kvswap.core.errors import StoreFull, UsageError
from kvswap.core.ids import Cid
from kvswap.store import direct


def chunk_path(chunks: Path, cid: Cid) -> Path:
    """Where a chunk is below the `chunks` directory; readers of other processes use it too."""
    name = str(cid)
    return chunks / name[-2:] / name


class ChunkFiles:
    """The directory of chunks."""

    def __init__(self, root: Path) -> None:
        self._root = root / "chunks"
        self._temporary = root / "tmp"
        self._quarantine = root / "quarantine"
        for directory in (self._root, self._temporary, self._quarantine):
            directory.mkdir(parents=True, exist_ok=True)

    def path(self, cid: Cid) -> Path:
        return chunk_path(self._root, cid)

    @property
    def directory(self) -> Path:
        return self._root

    def write(self, cid: Cid, data: bytes | memoryview, owner: mmap.mmap | None = None) -> None:
        """Store the bytes under their name.  Raises `StoreFull`; the store stays as it was.

        `owner`: see `direct.write`.
        """
        target = self.path(cid)
        temporary: str | None = None
        try:
            target.parent.mkdir(exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self._temporary)
            try:
                direct.write(descriptor, data, owner)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, target)
            temporary = None
            _sync_directory(target.parent)
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
                Path(temporary).unlink(missing_ok=True)

    def read(self, cid: Cid) -> bytes:
        """The bytes as they are on disk; the caller checks them.  Raises `FileNotFoundError`."""
        return self.path(cid).read_bytes()

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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
