"""A strict reader of GGUF files: metadata and where the tensors lie.  No tensor is read here.

    u32 magic, u32 version, u64 tensors, u64 entries
    entries of metadata: key, u32 type, value;  a text is u64 length and so many bytes, an array u32 type, u64 count
    tensors: name, u32 axes, axes x u64 length (the innermost first), u32 type, u64 offset from where the data begin
    padding up to a multiple of the alignment, then the data

Every count and length is bounded before it is used; arrays are hashed as they pass and are not kept.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from kvswap.core.errors import Incompatible
from kvswap.core.text import printable

Scalar = int | float | bool | str

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_MOST_TENSORS = 1 << 16
_MOST_ENTRIES = 1 << 14
_MOST_ITEMS = 1 << 24  # of an array
_MOST_TEXT = 1 << 24
_MOST_HEADER = 1 << 28  # bytes before the data
_MOST_NAME = 256
_MOST_AXES = 4
_ALIGNMENT = "general.alignment"

_FORMS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_KEPT = 4_096  # items of an array of numbers that are kept

TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""The types of tensors by number: name, numbers in a block, bytes of a block."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a file: its type, its axes as the file has them, and where its bytes are in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    at: int
    length: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a GGUF file.

    `metadata` has numbers and texts, `arrays` numbers of arrays that are not long, `digests` the BLAKE3 of every entry
    over its type and bytes.
    """

    path: Path
    metadata: Mapping[str, Scalar]
    arrays: Mapping[str, tuple[Scalar, ...]]
    digests: Mapping[str, bytes]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """The name of the model's architecture."""
        return str(self.metadata["general.architecture"])

    def number(self, name: str, default: int | None = None) -> int:
        """Return a whole number of the architecture's metadata, as `block_count`.

        Raises `Incompatible` if it is missing without a default, or no whole number.
        """
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _unfit(self.path, f"its metadata have no proper {key}")
        return value

    def numbers(self, name: str, count: int, default: int | None = None) -> tuple[int, ...]:
        """Return a whole number for each layer, where the metadata have one for all of them or an array."""
        array = self.arrays.get(f"{self.architecture}.{name}")
        if array is None:
            return (self.number(name, default),) * count
        whole = tuple(value for value in array if isinstance(value, int) and value >= 0)
        if len(whole) < count:
            raise _unfit(self.path, f"its metadata have no {self.architecture}.{name} for each of {count} layers")
        return whole[:count]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file.

    Raises `Incompatible` for what is none, is malformed, cut off, or one of several parts; `OSError`.
    """
    with path.open("rb") as file:
        return parse_gguf(file, path.stat().st_size, path)


def parse_gguf(file: BinaryIO, size: int, path: Path) -> GgufFile:
    """Read the header of an open GGUF file of `size` bytes; `path` is what errors and the result name.

    Raises what `read_gguf` raises.
    """
    reader = _HeaderReader(path, file, size)
    if reader.take(4) != MAGIC:
        raise _unfit(path, "it is no GGUF file")
    version, tensors, entries = reader.unpack("<IQQ")
    if version not in VERSIONS:
        raise _unfit(path, f"it is of GGUF version {version}", "a newer one, or of a big-endian machine")
    if tensors > _MOST_TENSORS or entries > _MOST_ENTRIES:
        raise _unfit(path, f"it names {tensors} tensors and {entries} entries of metadata")
    metadata: dict[str, Scalar] = {}
    arrays: dict[str, tuple[Scalar, ...]] = {}
    digests: dict[str, bytes] = {}
    for _ in range(entries):
        key = reader.text(_MOST_NAME)
        if key in digests:
            raise _unfit(path, f"its metadata have {printable(key)} twice")
        digests[key] = _entry(reader, key, metadata, arrays)
    if not isinstance(metadata.get("general.architecture"), str):
        raise _unfit(path, "it does not name its architecture")
    if metadata.get("split.count", 1) not in (0, 1):
        raise _unfit(path, "it is one of several parts", "the model was split", "llama-gguf-split --merge")
    found = _tensors(reader, int(tensors), metadata.get(_ALIGNMENT, 32))
    return GgufFile(path, metadata, arrays, digests, found)


def _unfit(path: Path, why: str, cause: str | None = None, hint: str | None = None) -> Incompatible:
    return Incompatible(
        f"{path.name} cannot be used: {why}",
        cause=cause or "the file is damaged, or its download was cut off",
        hint=hint or "get the file anew",
        field="model",
    )


class _HeaderReader:
    """The bytes of a header, front to back, with their length bounded; what is read goes into a digest."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self._file, self.size = path, file, size
        self.at = 0
        self.hasher = blake3()

    def take(self, size: int) -> bytes:
        if self.at + size > min(self.size, _MOST_HEADER):
            raise _unfit(self.path, f"its header ends in the middle, at {self.at} of {self.size} bytes")
        data = self._file.read(size)
        if len(data) != size:
            raise _unfit(self.path, f"it is cut off at {self.at} bytes")
        self.at += size
        self.hasher.update(data)
        return data

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self, most: int) -> str:
        (length,) = self.unpack("<Q")
        if length > most:
            raise _unfit(self.path, f"a text of {length} bytes at {self.at} is over the cap of {most}")
        return self.take(length).decode("utf-8", "surrogateescape")

    def scalar(self, kind: int) -> Scalar:
        if kind == _TEXT:
            return self.text(_MOST_TEXT)
        form = _FORMS.get(kind)
        if form is None:
            raise _unfit(self.path, f"its metadata have a value of type {kind} at {self.at}")
        value: Scalar = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value


def _entry(
    reader: _HeaderReader, key: str, metadata: dict[str, Scalar], arrays: dict[str, tuple[Scalar, ...]]
) -> bytes:
    """Read the value of an entry and return its digest."""
    reader.hasher = blake3()
    (kind,) = reader.unpack("<I")
    if kind != _ARRAY:
        metadata[key] = reader.scalar(kind)
        return reader.hasher.digest()
    inner, count = reader.unpack("<IQ")
    if count > _MOST_ITEMS:
        raise _unfit(reader.path, f"{printable(key)} has {count} items, over the cap of {_MOST_ITEMS}")
    if inner == _TEXT:
        for _ in range(count):
            (length,) = reader.unpack("<Q")
            if length > _MOST_TEXT:
                raise _unfit(reader.path, f"a text of {length} bytes in {printable(key)} is over the cap")
            reader.take(length)
    elif (form := _FORMS.get(inner)) is not None:
        data = reader.take(struct.calcsize(form) * count)
        if count <= _KEPT:
            arrays[key] = tuple(value for (value,) in struct.iter_unpack(form, data))
    else:
        raise _unfit(reader.path, f"{printable(key)} is an array of type {inner}")
    return reader.hasher.digest()


def _tensors(reader: _HeaderReader, count: int, alignment: Scalar) -> tuple[GgufTensor, ...]:
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 1 <= alignment <= 1 << 16:
        raise _unfit(reader.path, "its alignment is no number of bytes")
    found: list[tuple[str, str, tuple[int, ...], int, int]] = []
    names: set[str] = set()
    for _ in range(count):
        name = reader.text(_MOST_NAME)
        if name in names:
            raise _unfit(reader.path, f"it has the tensor {printable(name)} twice")
        names.add(name)
        (axes,) = reader.unpack("<I")
        if not 1 <= axes <= _MOST_AXES:
            raise _unfit(reader.path, f"the tensor {printable(name)} has {axes} axes")
        shape = reader.unpack(f"<{axes}Q")
        number, offset = reader.unpack("<IQ")
        if number not in TENSOR_TYPES:
            raise _unfit(reader.path, f"the tensor {printable(name)} is of type {number}", "a newer kind of weights")
        kind, block, size = TENSOR_TYPES[number]
        numbers = math.prod(shape)
        if not 0 < numbers < 1 << 48 or shape[0] % block or offset % alignment:
            raise _unfit(reader.path, f"the tensor {printable(name)} does not fit its type or place")
        found.append((name, kind, shape, offset, numbers // block * size))
    start = -(-reader.at // alignment) * alignment
    out = tuple(GgufTensor(name, kind, shape, start + at, length) for name, kind, shape, at, length in found)
    for tensor in out:
        if tensor.at + tensor.length > reader.size:
            raise _unfit(reader.path, f"it is cut off: the tensor {printable(tensor.name)} is not there whole")
    return out
