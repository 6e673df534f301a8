"""The identity of a GGUF model: what changes it, what does not, and when it is computed again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import Incompatible, NotFound
from kvswap.integrations.llamacpp import identity as module
from kvswap.integrations.llamacpp.identity import gguf_identity
from tests.llama import tiny

pytest.importorskip("gguf")


def made(folder: Path, called: str, **settings: Any) -> Path:
    return tiny.write(folder / f"{called}.gguf", **{"layers": 1} | settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("gguf"), "plain")


def test_a_name_is_only_a_label(plain: Path, tmp_path: Path) -> None:
    here, there = gguf_identity(plain), gguf_identity(made(tmp_path, "other", name="another name"))
    assert here.label == "plain" and there.label == "other" and here.digest == there.digest
    assert here.parameters == there.parameters > 100_000


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"seed": 2}, "weights"),
        ({"dtype": "float32"}, "weights"),
        ({"rope_base": 20_000.0}, "config"),
        ({"context": 4_096}, "config"),
        ({"template": "{{ messages }}"}, "tokenizer"),
    ],
)
def test_what_changes_the_computation_changes_the_identity(
    plain: Path, tmp_path: Path, settings: dict[str, Any], part: str
) -> None:
    here, there = gguf_identity(plain), gguf_identity(made(tmp_path, "plain", **settings))
    assert here.digest != there.digest
    assert [name for name in ("weights", "config", "tokenizer") if getattr(here, name) != getattr(there, name)] == [
        part
    ]


def test_one_changed_byte_of_a_weight_is_another_model(plain: Path, tmp_path: Path) -> None:
    changed = tmp_path / "plain.gguf"
    data = bytearray(plain.read_bytes())
    data[-100] ^= 1
    changed.write_bytes(data)
    assert gguf_identity(changed).weights != gguf_identity(plain).weights


def test_it_is_computed_once_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = made(tmp_path, "model"), tmp_path / "cache"
    first = gguf_identity(path, cache=cache)
    computed: list[Path] = []
    original = module.read_gguf
    monkeypatch.setattr(module, "read_gguf", lambda path: computed.append(path) or original(path))
    assert gguf_identity(path, cache=cache) == first and not computed
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    second = gguf_identity(path, cache=cache)
    assert second.weights != first.weights and len(computed) == 1
    for held in cache.iterdir():
        held.write_bytes(b"\x81no")  # what was kept is damaged
    assert gguf_identity(path, cache=cache) == second and len(computed) == 2


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        gguf_identity(tmp_path / "nothing.gguf")
    (tmp_path / "text.gguf").write_text("hello")
    with pytest.raises(Incompatible, match=r"text.gguf"):
        gguf_identity(tmp_path / "text.gguf")
