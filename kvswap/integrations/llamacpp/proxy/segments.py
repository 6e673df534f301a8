"""Segments: files that each hold the keys and values of up to 256 tokens of a kept conversation.

    8 bytes    magic and version
    32 bytes   BLAKE3 of all that follows
    4 bytes    length of the header, little endian
    header     JSON: `start` (position of the first token), `ids`, `parent` (name of the segment before, "" for none),
               `cache` (0: of all layers or the full ones, 1: of the sliding ones), `first` and `stop` (positions that
               it holds: all of its tokens, or of sliding layers those that the server still had)
    rows       for each layer the keys of these positions, then their values, as llama.cpp has them

A segment is written once under the name of its token sequence, synced and renamed; what is read was checked against its
digest.  It never leaves this machine.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from blake3 import blake3

from kvswap.core.atomic import replacing
from kvswap.core.errors import IntegrityError
from kvswap.core.files import open_regular, read_regular
from kvswap.integrations.llamacpp import CacheShape, LayerRows

SEGMENT_TOKENS = 256
_MAGIC = b"kvslama1"
_PREFIX = len(_MAGIC) + 32 + 4
_HEADER_BYTES = 8_192  # of 256 ids of ten digits, and the rest
_SEGMENT_BYTES = 1 << 30
_FULL, _SLIDING = 0, 1


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The description of a segment: its tokens, its place behind another segment, and the positions that it holds."""

    start: int
    ids: tuple[int, ...]
    parent: str
    cache: int
    first: int
    stop: int

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.ids)

    def to_bytes(self) -> bytes:
        """Return the header as it is written."""
        fields = {name: getattr(self, name) for name in ("start", "ids", "parent", "cache", "first", "stop")}
        return json.dumps(fields, separators=(",", ":")).encode()


def sequence_name(root: str, ids: Sequence[int]) -> str:
    """Return the name of a token sequence under an identity: the first half of a BLAKE3 digest, as hex digits."""
    packed = np.asarray(ids, "<i4").tobytes()
    return blake3(root.encode() + b"\0" + packed).hexdigest()[:32]


def write_segment(path: Path, header: SegmentHeader, layers: Sequence[LayerRows]) -> int:
    """Write a segment under a temporary name, sync and rename it, and return its length.  Raises `OSError`."""
    head = header.to_bytes()
    rows = [np.ascontiguousarray(part).reshape(-1) for layer in layers for part in (layer.keys, layer.values)]
    digest = blake3(struct.pack("<I", len(head)) + head)
    for part in rows:
        digest.update(part.data)
    with replacing(path, named=False) as new:
        new.write(_MAGIC + digest.digest() + struct.pack("<I", len(head)) + head)
        for part in rows:
            new.write(part.data)
    return _PREFIX + len(head) + sum(len(part) for part in rows)


def read_header(path: Path) -> SegmentHeader:
    """Read what a segment is about, without checking its digest.  Raises `IntegrityError` or `OSError`."""
    with os.fdopen(open_regular(path), "rb", buffering=0) as file:
        return _header(file.read(_PREFIX + _HEADER_BYTES), path)[0]


def read_segment(path: Path, shape: CacheShape) -> tuple[SegmentHeader, list[LayerRows]]:
    """Read a segment whole, checked against its digest, as rows of each layer.

    Raises `IntegrityError` or `OSError`.
    """
    data = read_regular(path, _SEGMENT_BYTES)
    header, begin = _header(data, path)
    view = memoryview(data)
    if blake3(view[len(_MAGIC) + 32 :]).digest() != data[len(_MAGIC) : len(_MAGIC) + 32]:
        raise _damaged(path, "its content does not have its digest")
    tokens = header.stop - header.first
    if len(data) - begin != tokens * shape.token_bytes:
        raise _damaged(path, "it is of another model")
    layers = []
    for key_row, value_row in zip(shape.key_rows, shape.value_rows, strict=True):
        parts = []
        for row in (key_row, value_row):
            parts.append(np.frombuffer(data, np.uint8, tokens * row, begin).reshape(tokens, row))
            begin += tokens * row
        layers.append(LayerRows(*parts))
    return header, layers


def _header(data: bytes, path: Path) -> tuple[SegmentHeader, int]:
    """Return the header, and where the rows begin."""
    if len(data) < _PREFIX or data[: len(_MAGIC)] != _MAGIC:
        raise _damaged(path, "it does not begin as one")
    (length,) = struct.unpack_from("<I", data, _PREFIX - 4)
    if length > min(_HEADER_BYTES, len(data) - _PREFIX):
        raise _damaged(path, "it is cut off")
    try:
        fields = json.loads(data[_PREFIX : _PREFIX + length])
        ids, parent = fields["ids"], fields["parent"]
        start, cache, first, stop = (fields[name] for name in ("start", "cache", "first", "stop"))
    except (ValueError, LookupError, TypeError, RecursionError):
        raise _damaged(path, "its header is not one") from None
    numbers = (start, cache, first, stop, *(ids if isinstance(ids, list) else [None]))
    if not isinstance(parent, str) or not all(type(number) is int for number in numbers):
        raise _damaged(path, "its header is not one")
    header = SegmentHeader(start, tuple(ids), parent, cache, first, stop)
    ordered = 0 <= start <= first < stop <= header.end and len(ids) <= SEGMENT_TOKENS
    if not ordered or cache not in (_FULL, _SLIDING) or (cache == _FULL and (first, stop) != (start, header.end)):
        raise _damaged(path, "its positions are impossible")
    return header, _PREFIX + length


def _damaged(path: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{path.name} is no segment of a kept conversation: {why}", cause="a damaged disk")
