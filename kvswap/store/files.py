"""Chunk files: `chunks/<last two characters>/<cid>`, written whole or not at all.

A file appears under its name only when it is written whole (temp, rename), and synced before that unless the
caller does so later.  The rename itself may be lost with the power: then a listed file is missing, which every
reader notices, and it is fetched again - cheaper than a flush of the directory for each chunk.  The name is the
digest, so a reader can always tell a right file from a wrong one.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from kvswap.core.atomic import replacing
from kvswap.core.errors import IntegrityError, NotFound, StoreFull, UsageError
from kvswap.core.failures import Misplaced, as_kvswap_error
from kvswap.core.files import open_regular, read_regular
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.store import direct
from kvswap.store.database import set_aside, sync

_PIECE = 256 * 1024
_ANEW = "kvswap verify --store, then kvswap fetch it again"  # until a file is looked at, the index says that it is here


def chunk_path(chunks: Path, cid: Cid) -> Path:
    """Return the path of a chunk below the `chunks` directory; readers of other processes use it too."""
    name = str(cid)
    return chunks / name[-2:] / name


def wrong_chunk(cid: Cid, what: str) -> IntegrityError:
    """Make the error of a file that is not the chunk of its name."""
    return IntegrityError(f"chunk {cid} {what}", cause="the disk, or somebody, changed the file", hint=_ANEW)


def chunk_reader(chunks: Path) -> Callable[[Cid], bytes]:
    """Return a function that reads chunks below that directory in another process than the node's.

    Whoever reads checks the digest.  The function raises `NotFound`, and `IntegrityError` for what cannot be a chunk.
    """

    def read(cid: Cid) -> bytes:
        try:
            return read_regular(chunk_path(chunks, cid), LIMITS.chunk_frame_bytes)
        except Misplaced as error:
            raise wrong_chunk(cid, f"on disk cannot be it: {error.strerror}") from error
        except FileNotFoundError:
            raise NotFound(
                f"chunk {cid} is not in the store any more", cause="it was removed meanwhile", hint=_ANEW
            ) from None

    return read


class ChunkFile:
    """An open chunk, read in pieces; `length` is in bytes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        found = os.fstat(descriptor)
        self.length = found.st_size
        self.state = (found.st_size, found.st_mtime_ns)  # another one: the file was written to

    def read_into(self, into: memoryview, at: int) -> int:
        """Fill `into` from the offset `at` and return how many bytes there were, 0 at the end."""
        return os.preadv(self._descriptor, [into], at)

    def read(self) -> bytes:
        """Read the whole chunk."""
        whole = bytearray(self.length)
        view, at = memoryview(whole), 0
        while at < self.length and (size := self.read_into(view[at:], at)):
            at += size
        return bytes(view[:at])

    def id(self) -> Cid:
        """Compute the CID of the bytes, whatever the name of the file says."""
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
        self.quarantine = root / "quarantine"
        self.make_directories()

    def make_directories(self) -> None:
        """Make what is missing of the directories.  Raises `OSError`."""
        for directory in (self._root, self._temporary, self.quarantine):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, cid: Cid) -> Path:
        """Return the path of a chunk's file, whether it is there or not."""
        return chunk_path(self._root, cid)

    @property
    def directory(self) -> Path:
        """The directory of chunks."""
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
        """Write the bytes under their name.  Raises `StoreFull` or `LocalFault`; the store stays as it was.

        `owner` and `cached`: see `direct.write`.  Unless `synced`, the caller has to `sync` the file later.
        """
        try:
            with replacing(self.path(cid), scratch=self._temporary, synced=synced, named=False, mkdir=True) as new:
                direct.write(new.descriptor, data, owner, cached=cached)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise StoreFull(
                    f"no room for chunk {cid} ({len(data)} bytes)",
                    cause="the disk is full",
                    hint="kvswap gc",
                ) from error
            raise as_kvswap_error(error, f"writing chunk {cid}") from error

    def gone(self, cid: Cid) -> bool:
        """Return True if there is certainly no file of this name: one that cannot be looked at now is not gone."""
        try:
            self.path(cid).stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False
        return False

    def sync(self, cid: Cid) -> None:
        """Make a file durable.

        Raises `OSError` where the disk did not keep it, `FileNotFoundError`, `Misplaced`, and `KvswapError` where it
        cannot be opened: then the disk was not asked.
        """
        try:
            descriptor = open_regular(self.path(cid))
        except (FileNotFoundError, Misplaced):
            raise
        except OSError as error:
            raise as_kvswap_error(error, f"opening chunk {cid}") from error
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync_names(self, cids: Iterable[Cid]) -> None:
        """Make the names of files durable.  Raises `OSError`."""
        for directory in sorted({self.path(cid).parent for cid in cids}):
            with contextlib.suppress(FileNotFoundError):
                sync(directory)
        sync(self._root)

    @contextlib.contextmanager
    def open(self, cid: Cid) -> Iterator[ChunkFile]:
        """Open a chunk's file, as a context manager; the caller checks the bytes.

        Raises `FileNotFoundError`, `Misplaced`.
        """
        descriptor = open_regular(self.path(cid))
        try:
            yield ChunkFile(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, cid: Cid) -> None:
        """Delete a chunk's file; one that is not there is no error.  Raises `OSError`."""
        self.path(cid).unlink(missing_ok=True)

    def set_aside(self, cid: Cid) -> None:
        """Move a wrong file into quarantine, where it is kept for inspection."""
        aside = self.quarantine / str(cid)
        if os.path.lexists(aside):  # a file cannot take the place of a directory, nor a directory that of a file
            aside = self.quarantine / f"{cid}.{time.time_ns()}"
        with contextlib.suppress(OSError):
            os.replace(self.path(cid), aside)

    def clear_temporary(self) -> None:
        """Delete what a crash left half-written."""
        for path in self._temporary.iterdir():
            path.unlink(missing_ok=True)

    def all(self) -> Iterator[Cid]:
        """Yield every chunk file; other names are passed over."""
        for cid, _ in self._entries():
            yield cid

    def sizes(self) -> Iterator[tuple[Cid, int]]:
        """Yield every regular chunk file that is not empty, with its length in bytes."""
        for cid, entry in self._entries():
            with contextlib.suppress(OSError):
                if entry.is_file() and (size := entry.stat().st_size):
                    yield cid, size

    def _entries(self) -> Iterator[tuple[Cid, os.DirEntry[str]]]:
        for directory in _listed(self._root):
            for entry in _listed(directory) if directory.is_dir() else ():
                try:
                    yield Cid.parse(entry.name), entry
                except UsageError:
                    continue


def _listed(directory: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    """List a directory, sorted; empty for one that is not there any more."""
    try:
        with os.scandir(directory) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


__all__ = ["ChunkFile", "ChunkFiles", "chunk_path", "chunk_reader", "set_aside", "wrong_chunk"]
