"""A model's directory that is damaged, cut off, or holds other things than files is refused, and told as such."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from kvswap.core.errors import Incompatible, KvswapError, NotFound
from kvswap.model.catalogue import resolve
from kvswap.model.identity import directory_identity
from kvswap.model.load import load_model
from tests.core.test_failures import is_told

JSON = ("config.json", "tokenizer.json", "tokenizer_config.json")
WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "copy"))


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        path.unlink()
        make(path)

    return work


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\0garbage" * 50),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "its last byte is missing": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a directory": _instead(Path.mkdir),
    "a pipe": _instead(os.mkfifo),  # which nobody writes to: opening it would wait for ever
    "a device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": _instead(lambda path: path.symlink_to(path.name)),
    "a link to nowhere": _instead(lambda path: path.symlink_to("nowhere")),
    "a list": lambda path: path.write_bytes(b"[]"),
    "null": lambda path: path.write_bytes(b"null"),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "half a character": lambda path: path.write_bytes(b'{"a": "\\ud800"}'),
}


def judged(directory: Path, load: bool) -> KvswapError | None:
    """What is said of the directory by whoever names it; None where it is taken."""
    try:
        directory_identity(resolve(str(directory), directory.parent), "m")
        if load:
            load_model(directory, "m", "float32")
    except KvswapError as error:
        return error
    return None


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*JSON, WEIGHTS])
def test_a_damaged_file_is_told_with_what_helps(name: str, damage: str, copy: Path) -> None:
    DAMAGE[damage](copy / name)
    error = judged(copy, load=False)
    if error is None:  # what only transformers can tell, and a tokenizer's that need not be there
        assert name != WEIGHTS
        return
    is_told(error)
    assert isinstance(error, Incompatible | NotFound) and str(copy) in error.message
    assert "kvswap status" not in error.hint and "another model, dtype or version" not in error.cause


@pytest.mark.parametrize(
    ("name", "damage"),
    [("config.json", "null"), ("tokenizer.json", "missing"), ("tokenizer.json", "a list"), ("config.json", "a list"),
     ("tokenizer.json", "half a character"), ("tokenizer_config.json", "null")],
)  # fmt: skip
def test_what_only_the_library_can_tell_is_told_as_well(name: str, damage: str, copy: Path) -> None:
    DAMAGE[damage](copy / name)
    error = judged(copy, load=True)
    assert isinstance(error, Incompatible)
    is_told(error)
    assert "kvswap status" not in error.hint and "another model, dtype or version" not in error.cause


@pytest.mark.parametrize("change", ["shape", "dtype", "offsets", "negative", "no tensors", "long header"])
def test_a_header_that_is_not_of_its_file_is_refused(change: str, copy: Path) -> None:
    path = copy / WEIGHTS
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    first = next(name for name in header if name != "__metadata__")
    changes = {
        "shape": lambda: header[first].update(shape="x"),
        "dtype": lambda: header[first].update(dtype=9),
        "offsets": lambda: header[first].update(data_offsets=[0, 10**15]),
        "negative": lambda: header[first].update(data_offsets=[-4, 8]),
        "no tensors": header.clear,
        "long header": lambda: None,
    }
    changes[change]()
    packed = json.dumps(header).encode()
    available = 2**60 if change == "long header" else len(packed)
    path.write_bytes(struct.pack("<Q", available) + packed + data[8 + length :])
    error = judged(copy, load=change == "no tensors")
    assert isinstance(error, Incompatible)
    is_told(error)
    assert "kvswap status" not in error.hint
