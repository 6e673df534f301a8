"""The header of a GGUF file: what is read, and what is refused before it costs anything."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from kvswap.core.errors import Incompatible
from kvswap.integrations.llamacpp.gguf import TENSOR_TYPES, GgufFile, parse_gguf, read_gguf
from tests.llama import tiny


def header(
    tensors: int = 0, entries: bytes = b"", count: int = 0, *, magic: bytes = b"GGUF", version: int = 3
) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, count) + entries


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


ARCHITECTURE = text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")


def tensor(name: bytes = b"w", axes: tuple[int, ...] = (32,), kind: int = 0, at: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, kind, at)


def parse(data: bytes) -> GgufFile:
    return parse_gguf(io.BytesIO(data), len(data), Path("some.gguf"))


def test_a_file_of_the_formats_own_library_is_read_whole(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tiny.write(tmp_path / "tiny.gguf")
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert [t.name for t in ours.tensors] == [t.name for t in theirs.tensors]
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.kind, mine.at, mine.length) == (other.tensor_type.name, other.data_offset, other.n_bytes)
        assert list(mine.shape) == [int(axis) for axis in other.shape]
    assert set(ours.digests) == {name for name in theirs.fields if not name.startswith("GGUF.")}
    assert ours.architecture == "llama" and ours.number("block_count") == 2
    assert ours.numbers("attention.head_count_kv", 2) == (1, 1)
    assert ours.number("not_there", 7) == 7


def test_the_sizes_of_types_are_those_of_the_formats_own_library() -> None:
    gguf = pytest.importorskip("gguf")
    for number, (name, block, size) in TENSOR_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert kind.name == name and gguf.GGML_QUANT_SIZES[kind] == (block, size)


HOSTILE = {
    "no GGUF file": header(magic=b"ABCD"),
    "version 1": header(version=1),
    "version 50331648": header(version=3 << 24),
    "names 1099511627776 tensors": header(1 << 40),
    "entries of metadata": header(count=1 << 20),
    "its header ends": header(count=1),
    "over the cap of 256": header(count=1, entries=struct.pack("<Q", 1 << 62)),
    "value of type 13": header(count=1, entries=text(b"x") + struct.pack("<I", 13)),
    "array of type 9": header(count=1, entries=text(b"x") + struct.pack("<IIQ", 9, 9, 1)),
    "items, over the cap": header(count=1, entries=text(b"x") + struct.pack("<IIQ", 9, 0, 1 << 40)),
    "a text of 4611686018427387904 bytes in x": header(
        count=1, entries=text(b"x") + struct.pack("<IIQQ", 9, 8, 1, 1 << 62)
    ),
    "twice": header(count=2, entries=ARCHITECTURE * 2),
    "does not name its architecture": header(),
    "one of several parts": header(count=2, entries=ARCHITECTURE + text(b"split.count") + struct.pack("<IH", 2, 3)),
    "alignment": header(count=2, entries=ARCHITECTURE + text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "has 9 axes": header(1, ARCHITECTURE + text(b"w") + struct.pack("<I", 9), 1),
    "is of type 99": header(1, ARCHITECTURE + tensor(kind=99), 1),
    "does not fit its type": header(1, ARCHITECTURE + tensor(axes=(33,), kind=8), 1),
    "fit its type or place": header(1, ARCHITECTURE + tensor(axes=(1 << 40, 1 << 40)), 1),
    "its type or place": header(1, ARCHITECTURE + tensor(at=5), 1),
    "the tensor w is not there whole": header(1, ARCHITECTURE + tensor(), 1),
    "the tensor w twice": header(2, ARCHITECTURE + tensor() * 2, 1),
}


@pytest.mark.parametrize("message", HOSTILE)
def test_what_is_no_proper_model_is_refused_by_name(message: str) -> None:
    with pytest.raises(Incompatible, match=message) as refused:
        parse(HOSTILE[message])
    assert refused.value.exit_code == 7 and "some.gguf" in refused.value.message


def test_metadata_without_a_number_for_each_layer_are_refused() -> None:
    entry = text(b"llama.x") + struct.pack("<IIQ3I", 9, 4, 3, 1, 2, 3)
    file = parse(header(count=3, entries=ARCHITECTURE + entry + text(b"llama.y") + struct.pack("<If", 6, 1.5)))
    assert file.numbers("x", 2) == (1, 2)
    for name, count in (("x", 4), ("y", 1), ("z", 1)):
        with pytest.raises(Incompatible):
            file.numbers(name, count)
