"""The signed manifests on disk, beside the chunks: the index can be rebuilt from these two.

`artifacts/<id>.kvm` is the envelope as it is sent to peers; `artifacts/<id>.pin`, an empty file, says that it is
pinned; `artifacts/<id>.gone` is one that was removed, while an index that says otherwise may still be on disk: renaming
takes no room on a full one.  The times of a file are those at which the artifact was added (modified) and used
(accessed).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvswap.core.atomic import replacing
from kvswap.core.errors import UsageError
from kvswap.core.files import read_regular
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.store.database import sync

_ENVELOPE, _PIN, _GONE = ".kvm", ".pin", ".gone"


@dataclass(frozen=True, slots=True)
class StoredEnvelope:
    """An envelope that was found on disk; times are Unix seconds."""

    id: str
    added: float
    used: float
    pinned: bool


class Envelopes:
    """The directory of signed manifests."""

    def __init__(self, root: Path) -> None:
        self._root = root / "artifacts"
        self._temporary = root / "tmp"
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _path(self, artifact: str, kind: str = _ENVELOPE) -> Path:
        return self._root / f"{artifact}{kind}"

    def has(self, artifact: str) -> bool:
        """Return True if the envelope of an artifact is on disk."""
        return self._path(artifact).exists()

    def write(self, artifact: str, envelope: bytes, *, added: float, used: float, durable: bool) -> None:
        """Write an envelope, whole or not at all; with `durable` it is synced when this returns.  Raises `OSError`."""
        with replacing(self._path(artifact), scratch=self._temporary, synced=durable, named=False, mkdir=True) as new:
            new.write(envelope)
            os.utime(new.descriptor, (used, added))
        if durable:
            sync(self._root)

    @contextlib.contextmanager
    def _created(self, path: Path) -> Iterator[int]:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileNotFoundError:  # somebody removed the directories
            for directory in (self._root, self._temporary):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, artifact: str) -> bytes:
        """Return the envelope.  Raises `Misplaced` where it cannot be one, or `OSError`."""
        return read_regular(self._path(artifact), LIMITS.manifest_bytes)

    def mark_removed(self, artifact: str, *, durable: bool = True) -> None:
        """Remove an envelope and its pin, but remember the removal until `forget`.  Raises `OSError`."""
        self._path(artifact, _PIN).unlink(missing_ok=True)
        gone = self._path(artifact, _GONE)
        try:
            os.replace(self._path(artifact), gone)
        except FileNotFoundError:
            with contextlib.suppress(OSError), self._created(gone):
                pass
        if durable:
            self.sync()

    def forget(self, artifact: str) -> None:
        """Forget the removal of an artifact that no index on disk lists any more.  Best effort."""
        with contextlib.suppress(OSError):
            self._path(artifact, _GONE).unlink(missing_ok=True)

    def removed_artifacts(self) -> list[str]:
        """Return the ids of the artifacts that were removed and not forgotten."""
        return sorted(path.stem for path in self._root.glob(f"*{_GONE}"))

    def remove(self, artifact: str) -> None:
        """Delete an envelope and its pin; one that is not here is no error.  Raises `OSError`."""
        for kind in (_PIN, _ENVELOPE):
            self._path(artifact, kind).unlink(missing_ok=True)

    def set_aside(self, artifact: str, quarantine: Path) -> None:
        """Move an envelope that cannot be read out of the way."""
        with contextlib.suppress(OSError):
            os.replace(self._path(artifact), quarantine / f"{artifact}{_ENVELOPE}")

    def pin(self, artifact: str, pinned: bool) -> None:
        """Write or delete the pin of an artifact.  Raises `OSError`."""
        path = self._path(artifact, _PIN)
        if pinned:
            with self._created_once(path):
                pass
        else:
            path.unlink(missing_ok=True)
        self.sync()

    @contextlib.contextmanager
    def _created_once(self, path: Path) -> Iterator[None]:
        if not path.exists():
            with self._created(path):
                yield
        else:
            yield

    def sync(self) -> None:
        """Make names that came or went durable, as far as the disk takes it."""
        with contextlib.suppress(OSError):
            sync(self._root)

    def all(self) -> dict[str, StoredEnvelope]:
        """Return the envelopes on disk, by id; other names are passed over.  Empty where the directory is gone."""
        found: dict[str, os.stat_result] = {}
        pins: set[str] = set()
        with contextlib.suppress(FileNotFoundError), os.scandir(self._root) as entries:
            for entry in entries:
                name, dot, kind = entry.name.rpartition(".")
                with contextlib.suppress(UsageError, FileNotFoundError):
                    if dot and kind == _ENVELOPE[1:]:
                        found[str(Cid.parse(name))] = entry.stat()
                    elif dot and kind == _PIN[1:]:
                        pins.add(name)
        return {name: StoredEnvelope(name, s.st_mtime, s.st_atime, name in pins) for name, s in found.items()}
