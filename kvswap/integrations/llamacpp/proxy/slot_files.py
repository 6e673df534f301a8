"""The slot files between the proxy and its llama-server: in memory, read once, gone at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvswap.core.atomic import is_running
from kvswap.core.errors import QuotaExceeded
from kvswap.integrations.llamacpp import (
    LayerRows,
    SequenceState,
    SlidingCheckpoint,
    SlotFile,
    StateShape,
    build,
    layer_rows,
    parse_slot_file,
    save_slot_file,
    shape_of,
)
from kvswap.integrations.llamacpp.proxy.kept import KeptPrefix, KeptTree, SlidingRows
from kvswap.integrations.llamacpp.state import Bytes

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of its own is made there
_PREFIX = "kvswap-llama-"
_BYTES_PER_SECOND = 1.5e9  # of a save, until one was measured
_SLOWEST = 50e6  # bytes a second, of which time limits are made
_SLACK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SavedSlot:
    """A slot as the server saved it, and where its sliding layers have checkpoints."""

    file: SlotFile
    checkpoints: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeptBytes:
    """The tokens and bytes that were new of a saved slot."""

    tokens: int
    bytes: int


def slots_directory(chosen: Path | None, fallback: Path) -> Path:
    """Make a directory for slot files: in shared memory where there is some, else under `fallback`.

    A directory that the user chose is used as it is.
    """
    if chosen is not None:
        chosen.mkdir(parents=True, exist_ok=True)
        return chosen
    if _SHARED_MEMORY.is_dir() and os.access(_SHARED_MEMORY, os.W_OK):
        return _own_directory(_SHARED_MEMORY)
    fallback.mkdir(parents=True, exist_ok=True, mode=0o700)
    return _own_directory(fallback)


def _own_directory(parent: Path) -> Path:
    """Make a directory named after this process, and remove those of processes that were killed."""
    for path in parent.glob(f"{_PREFIX}*"):
        pid = path.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))


def slot_file_name(purpose: str, number: int) -> str:
    """Return a name for a slot file of this process."""
    return f"kvswap-{purpose}-{os.getpid()}-{number}.bin"


def restorable(shape: StateShape, ids: Sequence[int], caches: Sequence[Sequence[LayerRows]]) -> SlotFile:
    """Build the slot file of these tokens so that llama-server goes on from it.

    The server looks whether anything is missing in the sliding layers, with one token more than they need.  Where their
    rows begin later than the tokens, a row of zeros, which is masked, goes before them; where they do not, a checkpoint
    at the end says so, if its files have checkpoints.
    """
    if not shape.slides:
        return build(shape, ids, caches)
    full, sliding = caches
    if len(sliding[0].keys) < len(ids):
        padded = [LayerRows(_after_zeros(layer.keys), _after_zeros(layer.values)) for layer in sliding]
        return build(shape, ids, (full, padded))
    file = build(shape, ids, caches)
    if not shape.checkpoints:
        return file
    state = SequenceState(shape.version, (file.state.caches[1],), shape.sequence)
    return replace(file, checkpoints=(SlidingCheckpoint(len(ids), 0, len(ids) - 1, state),))


def _after_zeros(rows: Bytes) -> Bytes:
    return np.concatenate([np.zeros_like(rows[:1]), rows])


class SlotFiles:
    """The slot files of one server in its directory; `shape` is how they look, once that is known."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._shape: StateShape | None = None
        self._rate = _BYTES_PER_SECOND
        self._last_bytes = 0

    @property
    def shape(self) -> StateShape:
        """The shape of the server's states."""
        assert self._shape is not None  # noqa: S101 - nothing is kept before it is known
        return self._shape

    def learn(self, shape: StateShape) -> None:
        """Take note of how the states of the server look, which has just started."""
        self._shape = shape
        for path in self.directory.glob("kvswap-*-*-*.bin"):
            pid = path.name.split("-")[2]
            if pid.isdecimal() and (int(pid) == os.getpid() or not is_running(int(pid))):
                self.remove(path.name)

    @property
    def expected_seconds(self) -> float:
        """The seconds that a save of what was saved last would take."""
        return self._last_bytes / self._rate

    def seconds(self, size: int | None = None) -> float:
        """Return a time limit for saving or restoring so many bytes, by default somewhat more than last time."""
        return _SLACK_SECONDS + (2 * self._last_bytes if size is None else size) / _SLOWEST

    def check_free(self) -> None:
        """Raise `QuotaExceeded` where there is not room for a slot somewhat larger than the last."""
        self._check(self._last_bytes + self._last_bytes // 4 + (1 << 20))

    def _check(self, size: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if free < size:
            raise QuotaExceeded(
                f"{self.directory} has {free} bytes free, a slot takes {size}",
                cause="slots are saved to memory",
                hint="--slot-save-path DIRECTORY of llama-server names another place",
            )

    def read(self, name: str, took: float) -> SavedSlot:
        """Parse a slot that the server saved within so many seconds.

        Raises `MalformedState` or `Incompatible` for what is not understood, or `OSError`.
        """
        with (self.directory / name).open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            data = np.memmap(opened, np.uint8, "r") if size else np.empty(0, np.uint8)
        file = parse_slot_file(data)
        self._last_bytes, self._rate = size, max(size / max(took, 1e-4), 1e6)
        return SavedSlot(file, tuple(point.tokens for point in file.checkpoints or ()))

    def keep(self, tree: KeptTree, saved: SavedSlot) -> KeptBytes:
        """Write what a tree does not have of a saved slot.  Raises `OSError`."""
        file = saved.file
        if shape_of(file).caches != tree.shape.caches:
            return KeptBytes(0, 0)
        full = layer_rows(file.state.caches[0], 0, file.state.tokens)
        sliding = []
        if file.state.slides:
            last = file.state.caches[1]
            if len(last.positions) < file.state.tokens:  # it begins later: this is all that it keeps
                tree.note_window(len(last.positions))
            for cache in (last, *(point.state.caches[0] for point in file.checkpoints or ())):
                sliding.append(SlidingRows(cache.first, layer_rows(cache, cache.first, cache.stop)))
        before = tree.match(file.ids).shared
        written = tree.add(file.ids, full, sliding)
        return KeptBytes(len(file.ids) - before, written)

    def write(self, name: str, tree: KeptTree, match: KeptPrefix, ids: Sequence[int], shape: StateShape) -> int:
        """Write the slot file of a match, for the server to restore, and return its length.

        Raises `IntegrityError` for a damaged segment, or `OSError`.
        """
        self._check(2 * match.tokens * sum(cache.token_bytes for cache in shape.caches))
        return save_slot_file(self.directory / name, restorable(shape, ids, tree.read(match)))

    def remove(self, name: str) -> None:
        """Remove a slot file, if it is there."""
        with suppress(OSError):
            (self.directory / name).unlink()
