"""What is kept of conversations on this machine: a tree of segments, found by the token ids of a prompt.

Conversations share the segments of their common prefix.  The tree is made anew from the files' headers at start, so a
process may be killed at any moment; what is used least goes first when the quota is full, leaves before what they
continue.  Of sliding layers only those positions are kept that the server still had when it was asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kvswap.core.atomic import clear_unfinished, sync_directory, write_atomic
from kvswap.core.errors import IntegrityError, KvswapError
from kvswap.core.files import read_regular
from kvswap.integrations.llamacpp import LayerRows, StateShape
from kvswap.integrations.llamacpp.proxy.ranges import (
    common_length,
    joined_ranges,
    layers_between,
    missing_ranges,
    rows_between,
    stacked_layers,
    window_layers,
)
from kvswap.integrations.llamacpp.proxy.segments import (
    SEGMENT_TOKENS,
    SegmentHeader,
    read_header,
    read_segment,
    sequence_name,
    write_segment,
)

logger = logging.getLogger("kvswap.llama")

_WINDOW = "window"


@dataclass(slots=True, eq=False)
class _Branch:
    """A segment in the tree; the root has no tokens."""

    name: str
    start: int
    ids: tuple[int, ...]
    parent: _Branch | None
    size: int = 0
    used: float = 0.0
    children: dict[tuple[int, int], _Branch] = field(default_factory=dict)  # by position and id of their first token
    sliding: dict[tuple[int, int], int] = field(default_factory=dict)  # first and stop -> bytes

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class KeptPrefix:
    """The segments that a prompt begins with, each with the position to which it is shared, and the tokens usable."""

    tokens: int
    shared: int
    path: tuple[tuple[_Branch, int], ...]


@dataclass(frozen=True, slots=True)
class SlidingRows:
    """Keys and values of the sliding layers from a position on."""

    first: int
    layers: Sequence[LayerRows]

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.first + len(self.layers[0].keys)


class KeptTree:
    """The conversations kept for one identity: a model, a layout of its states and the numbers that its server makes.

    `folder` is of all identities, `root` names this one.
    """

    def __init__(self, folder: Path, root: str, shape: StateShape, quota_bytes: int) -> None:
        self._folder, self._directory = folder, folder / root
        self.root, self.shape, self.quota_bytes = root, shape, quota_bytes
        self.window: int | None = None  # cells that sliding layers keep, once it was seen
        self._lock = threading.Lock()  # of the tree, never held while a file is read or written
        self._top = _Branch("", 0, (), None)
        self._nodes: dict[str, _Branch] = {"": self._top}
        self.bytes = 0
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        clear_unfinished(self._directory)
        with contextlib.suppress(OSError, ValueError):
            self.window = int(read_regular(self._directory / _WINDOW, 32))
        self._scan()

    def note_window(self, cells: int) -> None:
        """Remember how many cells the sliding layers keep, which shows only in a sequence longer than that."""
        if cells != self.window:
            self.window = cells
            write_atomic(self._directory / _WINDOW, str(cells).encode())

    # -- finding -------------------------------------------------------------------------------------

    def match(self, ids: Sequence[int]) -> KeptPrefix:
        """Find the longest kept prefix of these ids, and how much of it can be restored."""
        with self._lock:
            path, shared = self._walk(ids)
        tokens = shared
        if self.shape.slides:
            tokens = self._restorable(path, shared)
        return KeptPrefix(
            tokens, shared, tuple((node, min(upto, tokens)) for node, upto in path if node.start < tokens)
        )

    def _walk(self, ids: Sequence[int]) -> tuple[list[tuple[_Branch, int]], int]:
        path: list[tuple[_Branch, int]] = []
        node, shared = self._top, 0
        while shared < len(ids) and (child := node.children.get((shared, ids[shared]))) is not None:
            node, shared = child, child.start + common_length(child.ids, ids[child.start : child.end])
            path.append((node, shared))
        return path, shared

    def _restorable(self, path: list[tuple[_Branch, int]], shared: int) -> int:
        """Return the last position at which the window of the sliding layers is here whole."""
        best = 0
        for first, stop in joined_ranges(self._held(path)):
            last = min(stop, shared)
            if (first == 0 and self.shape.checkpoints) or (self.window is not None and last - first >= self.window):
                best = max(best, last)
        return best

    def _held(self, path: list[tuple[_Branch, int]]) -> list[tuple[int, int]]:
        return sorted((first, min(stop, upto)) for node, upto in path for first, stop in node.sliding if first < upto)

    # -- reading -------------------------------------------------------------------------------------

    def read(self, match: KeptPrefix) -> list[list[LayerRows]]:
        """Read the rows of a match, checked: for each cache of the shape those of its layers, in order of positions.

        Of sliding layers these are the last `window` positions.  Raises `IntegrityError` for a damaged segment, which
        is dropped with all that continues it.
        """
        full: list[list[LayerRows]] = []
        sliding: list[tuple[int, int, list[LayerRows]]] = []
        begin = max(0, match.tokens - (self.window or match.tokens)) if self.shape.slides else match.tokens
        for node, upto in match.path:
            full.append(layers_between(self._read(node, self._full(node), 0), node.start, node.start, upto))
            for first, stop in sorted(node.sliding):
                low, high = max(first, begin), min(stop, upto)
                if low < high:
                    path = self._sliding(node, first, stop)
                    sliding.append((low, high, layers_between(self._read(node, path, 1), first, low, high)))
        caches = [stacked_layers(full)]
        if self.shape.slides:
            caches.append(window_layers(sliding, begin, match.tokens))
        self._use(match.path[-1][0])
        return caches

    def _read(self, node: _Branch, path: Path, cache: int) -> list[LayerRows]:
        try:
            header, layers = read_segment(path, self.shape.caches[cache])
            if (header.start, header.ids, header.cache) != (node.start, node.ids, cache):
                raise IntegrityError(f"{path.name} is of other tokens than its name says")
            return layers
        except (KvswapError, OSError) as error:
            self.drop(node)
            if isinstance(error, IntegrityError):
                raise
            raise IntegrityError(f"{path.name} cannot be read: {error}", cause="it was deleted, or the disk") from error

    def _use(self, node: _Branch) -> None:
        with contextlib.suppress(OSError):
            os.utime(self._full(node))
        with self._lock:
            _used_now(node, time.time())

    # -- adding --------------------------------------------------------------------------------------

    def add(self, ids: Sequence[int], full: Sequence[LayerRows], sliding: Sequence[SlidingRows] = ()) -> int:
        """Keep the rows of a conversation that are not here yet, and return the bytes written.

        `full` has all tokens; `sliding` those positions of the sliding layers that the server had.  Raises `OSError`;
        what was written before it counts.
        """
        with self._lock:
            path, shared = self._walk(ids)
        written = 0
        while shared < len(ids):
            end = min(len(ids), shared + SEGMENT_TOKENS)
            node = _Branch(
                sequence_name(self.root, ids[:end]), shared, tuple(ids[shared:end]), path[-1][0] if path else self._top
            )
            written += self._put(node, [rows_between(layer, shared, end) for layer in full])
            path.append((node, end))
            shared = end
        for rows in sliding:
            for node, upto in path:
                for first, stop in missing_ranges(node.sliding, max(node.start, rows.first), min(upto, rows.stop)):
                    layers = [rows_between(layer, first - rows.first, stop - rows.first) for layer in rows.layers]
                    written += self._put_sliding(node, first, stop, layers)
        if written:
            sync_directory(self._directory)
        if path:
            self._use(path[-1][0])
        self.collect()
        return written

    def _put(self, node: _Branch, layers: list[LayerRows]) -> int:
        parent = node.parent.name if node.parent is not None else ""
        header = SegmentHeader(node.start, node.ids, parent, 0, node.start, node.end)
        node.size, node.used = write_segment(self._full(node), header, layers), time.time()
        with self._lock:
            self._link(node)
        return node.size

    def _put_sliding(self, node: _Branch, first: int, stop: int, layers: list[LayerRows]) -> int:
        parent = node.parent.name if node.parent is not None else ""
        header = SegmentHeader(node.start, node.ids, parent, 1, first, stop)
        size = write_segment(self._sliding(node, first, stop), header, layers)
        with self._lock:
            node.sliding[first, stop] = size
            self.bytes += size
        return size

    def _link(self, node: _Branch) -> None:
        assert node.parent is not None  # noqa: S101 - only the top has none
        self._nodes[node.name] = node
        node.parent.children[node.start, node.ids[0]] = node
        self.bytes += node.size

    # -- dropping ------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Remove what was used least until the quota holds: other identities as a whole, or leaves of this one."""
        others = self._others()
        over = self.bytes + sum(size for _, size, _ in others) - self.quota_bytes
        while over > 0:
            with self._lock:
                leaf = min((n for n in self._nodes.values() if not n.children and n.parent), key=_used, default=None)
            if others and (leaf is None or others[0][0] < leaf.used):
                _, size, directory = others.pop(0)
                shutil.rmtree(directory, ignore_errors=True)
                over -= size
            elif leaf is not None:
                over -= self.drop(leaf)
            else:
                return

    def _others(self) -> list[tuple[float, int, Path]]:
        found = []
        for directory in self._folder.iterdir():
            if directory != self._directory and directory.is_dir():
                with contextlib.suppress(OSError):
                    stats = [entry.stat() for entry in os.scandir(directory)]
                    newest = max((stat.st_mtime for stat in stats), default=0.0)
                    found.append((newest, sum(stat.st_size for stat in stats), directory))
        return sorted(found, key=lambda one: one[0])

    def drop(self, node: _Branch) -> int:
        """Remove a segment and all that continues it, and return the bytes that are free again."""
        freed = 0
        todo = [node]
        with self._lock:
            if node.parent is not None and node.parent.children.get((node.start, node.ids[0])) is node:
                del node.parent.children[node.start, node.ids[0]]
            gone = []
            while todo:
                one = todo.pop()
                if self._nodes.pop(one.name, None) is not None:
                    freed += one.size + sum(one.sliding.values())
                gone.append(one)
                todo += one.children.values()
            self.bytes -= freed
        for one in reversed(gone):
            for path in (*(self._sliding(one, *part) for part in one.sliding), self._full(one)):
                with contextlib.suppress(OSError):
                    path.unlink()
        return freed

    @property
    def segments(self) -> int:
        """The number of segments."""
        return len(self._nodes) - 1

    # -- files ---------------------------------------------------------------------------------------

    def _full(self, node: _Branch) -> Path:
        return self._directory / f"{node.name}.full"

    def _sliding(self, node: _Branch, first: int, stop: int) -> Path:
        return self._directory / f"{node.name}.{first}-{stop}.sliding"

    def _scan(self) -> None:
        """Make the tree of the files that are here; those that nothing leads to are removed."""
        headers: dict[str, tuple[SegmentHeader, os.stat_result]] = {}
        sliding: list[tuple[str, SegmentHeader, int, Path]] = []
        for path in self._directory.iterdir():
            if path.name == _WINDOW:
                continue
            try:
                header, stat = read_header(path), path.stat()
            except (KvswapError, OSError) as error:
                logger.warning("a file of kept conversations is dropped: %s", error)
                _remove(path)
                continue
            name = path.name.partition(".")[0]
            if header.cache == 0:
                headers[name] = header, stat
            else:
                sliding.append((name, header, stat.st_size, path))
        for name, (header, stat) in sorted(headers.items(), key=lambda item: item[1][0].start):
            parent = self._nodes.get(header.parent)
            if parent is None or not (
                header.start == 0 if parent is self._top else parent.start < header.start <= parent.end
            ):
                _remove(self._directory / f"{name}.full")
                continue
            node = _Branch(name, header.start, header.ids, parent, stat.st_size)
            self._link(node)
            _used_now(node, stat.st_mtime)
        for name, header, size, path in sliding:
            found = self._nodes.get(name)
            if found is None or found is self._top or found.ids != header.ids:
                _remove(path)
            else:
                found.sliding[header.first, header.stop] = size
                self.bytes += size


def _used(node: _Branch) -> float:
    return node.used


def _used_now(node: _Branch | None, at: float) -> None:
    """Note that a segment was used, and with it all that it continues."""
    while node is not None:
        node.used = max(node.used, at)
        node = node.parent


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
