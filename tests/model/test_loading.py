"""What is loaded is the model that the directory holds, or it is refused by name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kvswap.core.errors import Incompatible, UsageError
from kvswap.model.identity import directory_identity
from kvswap.model.load import load_model
from tests.support import ROOT

SAME_DIRECTORY = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@pytest.fixture
def copy(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "copy"))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Path:
    """A directory of a mixture of experts, with the tokenizer of the others."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    directory = Path(shutil.copytree(tiny_models["llama"], tmp_path_factory.mktemp("experts") / "model"))
    config = Qwen3MoeConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=128,
        moe_intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
    )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def write(directory: Path, held: dict[str, torch.Tensor], name: str = "model.safetensors") -> None:
    save_file({key: value.contiguous() for key, value in held.items()}, directory / name, metadata={"format": "pt"})


def refused(directory: Path, dtype: str = "float32") -> Incompatible:
    with pytest.raises(Incompatible) as caught:
        load_model(directory, "m", dtype)
    assert caught.value.exit_code == 7
    assert "\n" not in caught.value.message
    return caught.value


# -- weights -----------------------------------------------------------------------------------------


@SAME_DIRECTORY
@given(data=st.data(), kind=st.sampled_from(["llama", "qwen3", "gemma3"]))
def test_a_missing_weight_is_refused_by_name(
    tiny_models: dict[str, Path], tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    directory = tmp_path / kind
    shutil.copytree(tiny_models[kind], directory, dirs_exist_ok=True)
    held = tensors(tiny_models[kind])
    names = data.draw(st.lists(st.sampled_from(sorted(held)), min_size=1, max_size=3, unique=True))
    write(directory, {name: value for name, value in held.items() if name not in names})
    error = refused(directory)
    assert any(name in error.message for name in names), error.message


@SAME_DIRECTORY
@given(data=st.data(), kind=st.sampled_from(["llama", "gemma3"]))
def test_a_weight_of_another_shape_is_refused_by_name(
    tiny_models: dict[str, Path], tmp_path: Path, data: st.DataObject, kind: str
) -> None:
    directory = tmp_path / kind
    shutil.copytree(tiny_models[kind], directory, dirs_exist_ok=True)
    held = tensors(tiny_models[kind])
    name = data.draw(st.sampled_from(sorted(held)))
    write(directory, held | {name: held[name][:-1]})
    assert name in refused(directory).message


def test_a_renamed_layer_is_refused(copy: Path) -> None:
    held = {name.replace("model.layers.1.", "model.blocks.1."): value for name, value in tensors(copy).items()}
    write(copy, held)
    assert "model.layers.1." in refused(copy).message


def test_tied_weights_need_not_be_there(tiny_models: dict[str, Path]) -> None:
    assert "lm_head.weight" not in tensors(tiny_models["gemma3"])
    load_model(tiny_models["gemma3"], "m", "float32")


@pytest.mark.parametrize(
    "more",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.self_attn.q_norm.weight",
        "model.layers.1.mlp.down_proj.lora_A.weight",
        "model.layers.1.extra",
        "lm_head.bias",
        "model.norm.bias",
    ],
)
def test_a_weight_that_a_layer_does_not_take_is_refused(copy: Path, more: str) -> None:
    write(copy, tensors(copy) | {more: torch.ones(4)})
    assert more in refused(copy).message


@pytest.mark.parametrize(
    "more",
    [
        "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.patch.weight",
        "model.layers.3.self_attn.q_proj.weight",  # a head for several tokens lies behind the last layer
        "mtp.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",  # a table that old files carry, made anew
    ],
)
def test_weights_beside_the_model_are_logged(copy: Path, more: str, caplog: pytest.LogCaptureFixture) -> None:
    write(copy, tensors(copy) | {more: torch.ones(4)})
    with caplog.at_level("INFO"):
        load_model(copy, "m", "float32")
    if "rotary" not in more:
        assert more in caplog.text


@pytest.mark.parametrize("change", ["one", "projection", "expert", "renumbered", "shape"])
def test_experts_that_are_not_whole_are_refused(experts: Path, tmp_path: Path, change: str) -> None:
    directory = Path(shutil.copytree(experts, tmp_path / "changed"))
    held = tensors(directory)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    gone = {
        "one": [name],
        "projection": [n for n in held if ".layers.1." in n and n.endswith(".up_proj.weight") and ".experts." in n],
        "expert": [n for n in held if ".experts.3." in n],
        "renumbered": [n for n in held if ".experts.1." in n],
        "shape": [],
    }[change]
    left = {n: value for n, value in held.items() if n not in gone}
    if change == "renumbered":  # as many as the model has, and the wrong ones
        left |= {n.replace(".experts.1.", ".experts.4."): held[n] for n in gone}
    if change == "shape":
        left[name] = held[name][:-1]
    write(directory, left)
    assert "experts" in refused(directory).message


def test_whole_experts_load(experts: Path) -> None:
    load_model(experts, "m", "float32")


# -- which files -------------------------------------------------------------------------------------


def test_only_the_files_that_are_loaded_are_the_identity(copy: Path) -> None:
    before = directory_identity(copy, "m")
    write(copy, {"model.norm.weight": torch.zeros(64)}, "consolidated.safetensors")
    write(copy, {"other": torch.zeros(4)}, "adapter.safetensors")
    after = directory_identity(copy, "m")
    assert (after.digest, after.parameters) == (before.digest, before.parameters)


def test_shards_are_those_of_the_index(copy: Path) -> None:
    before = directory_identity(copy, "m").digest
    held = tensors(copy)
    names = sorted(held)
    (copy / "model.safetensors").unlink()
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, part in shards.items():
        write(copy, {n: held[n] for n in part}, shard)
    where = {n: shard for shard, part in shards.items() for n in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    write(copy, {n: value + 1 for n, value in held.items()}, "model-00001-of-00001.safetensors")  # a leftover
    assert directory_identity(copy, "m").digest == before
    loaded = load_model(copy, "m", "float32")
    assert torch.equal(loaded.model.model.norm.weight, held["model.norm.weight"])
    # with a file for all beside them, that one is loaded
    write(copy, {n: value * 2 for n, value in held.items()})
    assert directory_identity(copy, "m").digest != before
    loaded = load_model(copy, "m", "float32")
    assert torch.equal(loaded.model.model.norm.weight, held["model.norm.weight"] * 2)
    assert loaded.identity is not None and loaded.identity.digest == directory_identity(copy, "m").digest


@pytest.mark.parametrize("shard", ["../elsewhere.safetensors", "/etc/passwd", "gone.safetensors", 7, None])
def test_an_index_that_leads_astray_is_refused(copy: Path, shard: Any) -> None:
    write(copy, tensors(copy), "part.safetensors")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(Incompatible):
        directory_identity(copy, "m")
    refused(copy)


@pytest.mark.parametrize("named", ["other.safetensors", "other.safetensors.index.json"])
def test_a_file_that_the_configuration_names_is_the_one(copy: Path, named: str) -> None:
    before = directory_identity(copy, "m").weights
    held = tensors(copy)
    write(copy, {n: value * 2 for n, value in held.items()}, "other.safetensors")
    (copy / "other.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(held, "other.safetensors")})
    )
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_weights": named}))
    assert directory_identity(copy, "m").weights != before
    loaded = load_model(copy, "m", "float32")
    assert torch.equal(loaded.model.model.norm.weight, held["model.norm.weight"] * 2)


# -- what is refused before anything is loaded -------------------------------------------------------


def test_code_of_a_model_is_neither_run_nor_asked_for(copy: Path, tmp_path: Path) -> None:
    """In a process whose standard input has an answer: it is not read; one process for both kinds of code."""
    mark = tmp_path / "ran"
    (copy / "custom.py").write_text(f"open({str(mark)!r}, 'w').write('x')\nclass Config: pass\nclass Model: pass\n")
    other = tmp_path / "tokenizer"
    shutil.copytree(copy, other)
    config = json.loads((copy / "config.json").read_text())
    named = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "unheard-of", "auto_map": named}))
    settings = json.loads((other / "tokenizer_config.json").read_text())
    changed = {"tokenizer_class": "UnheardOf", "auto_map": {"AutoTokenizer": ["custom.Tokenizer", None]}}
    (other / "tokenizer_config.json").write_text(json.dumps(settings | changed))
    code = (
        "import sys\nfrom pathlib import Path\nfrom kvswap.core.errors import Incompatible\n"
        "from kvswap.model.load import load_model, load_tokenizer\n"
        "for directory in map(Path, sys.argv[1:]):\n"
        "    for way in (lambda: load_model(directory, 'm', 'float32'), lambda: load_tokenizer(directory)):\n"
        "        try:\n            way()\n"
        "        except Incompatible as error:\n            print('refused', directory.name, error.message)\n"
        "print('left', sys.stdin.read())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(copy), str(other)],
        input="y\ny\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert not mark.exists()
    assert "left y\ny\n" in done.stdout, done.stdout + done.stderr
    assert "[y/N]" not in done.stdout + done.stderr
    assert f"refused {copy.name}" in done.stdout and "unheard-of" in done.stdout


def test_a_native_class_is_used_where_a_directory_also_names_code(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    named = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": named}))
    assert type(load_model(copy, "m", "float32").model).__name__ == "LlamaForCausalLM"


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 538000000\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer.model"])
def test_a_pointer_of_git_lfs_is_told_as_such(copy: Path, name: str) -> None:
    (copy / name).write_text(POINTER)
    with pytest.raises(Incompatible) as caught:
        directory_identity(copy, "m")
    assert "Git LFS" in caught.value.message and name in caught.value.message
    assert "git lfs pull" in str(caught.value.hint)
    assert "Git LFS" in refused(copy).message


@pytest.mark.parametrize(
    ("method", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum|gptqmodel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel|autoawq"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "compressed.tensors"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "eetq"}, "eetq|kernels"),
    ],
    ids=lambda value: value["quant_method"] if isinstance(value, dict) else "",
)
def test_a_quantisation_whose_package_is_not_here_is_named(copy: Path, method: dict[str, Any], package: str) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    error = refused(copy)
    import re

    assert re.search(package, f"{error.message} {error.cause} {error.hint}", re.I), error.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"hidden_size": -1},
        {"num_hidden_layers": "three"},
        {"hidden_act": "no such"},
        {"vocab_size": None},
        {"rope_parameters": {"rope_type": "no such", "rope_theta": 1e4}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_a_library_says_of_a_configuration_is_our_error(copy: Path, change: dict[str, Any]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    refused(copy)


def test_weights_that_change_while_they_are_loaded_are_refused(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is hashed has to be what was loaded."""
    from transformers import AutoTokenizer

    right = AutoTokenizer.from_pretrained

    def between(*arguments: Any, **named: Any) -> Any:
        held = tensors(copy)
        write(copy, held | {"model.norm.weight": held["model.norm.weight"] + 1})
        return right(*arguments, **named)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", between)
    assert "changed" in refused(copy).message


@pytest.mark.parametrize("device", ["cuda:7", "cuda:1", "cuda:-1", "cuda:x", "cuda:"])
def test_a_gpu_that_is_not_there_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("kvswap.model.load.directory_identity", lambda *_: pytest.fail("the weights are hashed"))
    with pytest.raises(UsageError, match=f"no device '{device}'"):
        load_model(tmp_path, "x", "float32", device)
