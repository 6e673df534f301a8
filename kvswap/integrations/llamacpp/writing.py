"""The writer of llama.cpp's states and slot files: the reverse of `reading`, byte for byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from kvswap.core.atomic import replacing
from kvswap.integrations.llamacpp.state import (
    CHECKPOINTS_MAGIC,
    CHECKPOINTS_VERSION,
    FILE_MAGIC,
    PACKED,
    STATE_MAGIC,
    CellCache,
    CellTensor,
    SequenceState,
    SlotFile,
)

Piece = bytes | memoryview


def state_pieces(state: SequenceState) -> Iterator[Piece]:
    """Yield the bytes of a state in order, tensors without a copy where they lie as they are written."""
    yield struct.pack("<Ii", STATE_MAGIC, state.sequence)
    for cache in state.caches:
        yield from _cache(cache, state.version)


def slot_file_pieces(file: SlotFile) -> Iterator[Piece]:
    """Yield the bytes of a slot file in order, tensors without a copy where they lie as they are written."""
    words = [PACKED, 1, len(file.ids), *file.ids, 0] if file.packed else list(file.ids)
    yield struct.pack("<III", FILE_MAGIC, file.state.version, len(words))
    yield np.array(words, "<i4").tobytes()
    for cache in file.state.caches:
        yield from _cache(cache, file.state.version)
    if file.checkpoints is not None:
        yield struct.pack("<III", CHECKPOINTS_MAGIC, CHECKPOINTS_VERSION, len(file.checkpoints))
        for point in file.checkpoints:
            inner = list(state_pieces(point.state))
            size = sum(len(piece) for piece in inner)
            yield struct.pack("<qiiQ", point.tokens, point.first, point.last, size)
            yield from inner
            yield struct.pack("<QQ", 0, 0)  # no draft model, no speculative decoding


def write_state(state: SequenceState) -> bytes:
    """Return the bytes of a state."""
    return b"".join(state_pieces(state))


def write_slot_file(file: SlotFile) -> bytes:
    """Return the bytes of a slot file."""
    return b"".join(slot_file_pieces(file))


def save_slot_file(path: Path, file: SlotFile) -> int:
    """Write a slot file under a temporary name, sync and rename it, and return its length in bytes.

    llama-server ends itself when it reads a slot file that is cut off, so there must never be one of this
    name.  Raises `OSError`; then the file is as it was.
    """
    length = 0
    with replacing(path) as new:
        for piece in slot_file_pieces(file):
            new.write(piece)
            length += len(piece)
    return length


def _cache(cache: CellCache, version: int) -> Iterator[Piece]:
    yield struct.pack("<I", cache.streams)
    for stream in range(cache.streams):
        cells = len(cache.positions) if stream == cache.stream else 0
        yield struct.pack("<I", cells)
        if cells:
            yield from _tensors(cache, version)


def _tensors(cache: CellCache, version: int) -> Iterator[Piece]:
    meta = np.ones((len(cache.positions), 3), "<i4")
    meta[:, 0], meta[:, 2] = cache.positions, cache.sequence
    yield meta.tobytes()
    yield struct.pack("<II", cache.transposed, len(cache.keys))
    if version > 3:
        yield struct.pack("<II", *(cache.rotations or (0, 0)))
    for tensor in (*cache.keys, *cache.values):
        yield from _tensor(tensor)


def _tensor(tensor: CellTensor) -> Iterator[Piece]:
    if tensor.transposed:
        yield struct.pack("<iII", tensor.kind.number, tensor.kind.block_bytes, len(tensor.data))
    else:
        yield struct.pack("<iQ", tensor.kind.number, tensor.row_bytes)
    yield np.ascontiguousarray(tensor.data).data.cast("B")
