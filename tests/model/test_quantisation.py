"""Quantised weights: what was tried works or is refused by name, and the page says what the table holds.

What needs a package of its own was tried by hand in environments with it (`benchmarks/quantised.py`); fp8 and mxfp4
need none, and are computed here.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvswap.client.loading import LocalPrefill, live_identity
from kvswap.core.errors import Incompatible
from kvswap.model import quantisation
from kvswap.model.identity import directory_identity
from kvswap.model.load import load_model
from kvswap.model.quantisation import OTHERS, TRIED, check, in_memory, page
from kvswap.trust.accusation import comparable
from tests.support import ROOT

spec = importlib.util.spec_from_file_location("quantised", ROOT / "benchmarks" / "quantised.py")
assert spec is not None and spec.loader is not None
quantised = importlib.util.module_from_spec(spec)
spec.loader.exec_module(quantised)


def test_the_page_is_made_from_the_table() -> None:
    assert (ROOT / "docs" / "quantised.md").read_text() == page()
    for row in TRIED:
        assert f"| `{row.method}` | {row.scheme} | {row.package or 'none'} | {row.version} |" in page()
    for _, package, version, _ in OTHERS:
        assert f"| {package} | {version} |" in page()


@pytest.mark.parametrize("row", TRIED, ids=lambda row: f"{row.method} {row.scheme}")
def test_each_way_is_told_from_the_others_by_its_configuration(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "_version", lambda package: "1")
    config = quantised.CONFIGS[row.method, row.scheme]
    assert quantisation.row_of(config) is row
    if not row.refused:
        check(config, "m")
        return
    with pytest.raises(Incompatible) as caught:
        check(config, "m")
    assert caught.value.exit_code == 7 and caught.value.details["field"] == "quantization"
    assert row.method in caught.value.message and row.refused in caught.value.message


@pytest.mark.parametrize("row", [row for row in TRIED if row.package], ids=lambda row: f"{row.method} {row.scheme}")
def test_a_package_that_is_not_here_is_named_before_anything_is_loaded(
    row: Any, tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "_version", lambda package: None)
    directory = Path(shutil.copytree(tiny_models["llama"], tmp_path / "copy"))
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = quantised.CONFIGS[row.method, row.scheme]
    (directory / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(Incompatible, match=row.method) as caught:
        load_model(directory, "m", "float32")
    assert row.refused or (caught.value.hint == f"pip install {row.package}" and row.version in caught.value.cause)


@pytest.mark.parametrize("config", [{"quant_method": "of-tomorrow"}, {"bits": 4}, ["odd"], "odd", {"quant_method": 7}])
def test_what_was_not_tried_is_refused(config: Any) -> None:
    with pytest.raises(Incompatible, match="not tried"):
        check(config, "m")


def test_plain_weights_and_the_older_files_of_bitsandbytes_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "_version", lambda package: "1")
    for config in (None, {}, {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}):
        check(config, "m")


WIDENED = ("fp8", "mxfp4")
COMPUTED = (
    "import sys\nfrom pathlib import Path\nsys.path.insert(0, sys.argv.pop(1))\nimport quantised\n"
    "for directory in sys.argv[1:]:\n    print(quantised.computed(Path(directory), 'bfloat16'))\n"
)


@pytest.fixture(scope="module")
def in_two_processes(
    tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str, str]]:
    """Of each method a model, and what two processes computed with it; either computes with all of them."""
    root = tmp_path_factory.mktemp("widened")
    models = [quantised.make(method, tiny_models["llama"], root / method) for method in WIDENED]
    command = [sys.executable, "-c", COMPUTED, str(ROOT / "benchmarks"), *map(str, models)]
    said: list[list[str]] = []
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.splitlines()[-len(models) :])
    return dict(zip(WIDENED, zip(models, *said, strict=True), strict=True))


@pytest.mark.parametrize("method", WIDENED)
def test_what_is_widened_has_equal_bits_in_two_processes_and_a_class_of_its_own(
    method: str, in_two_processes: dict[str, tuple[Path, str, str]], tmp_path: Path
) -> None:
    directory, one, two = in_two_processes[method]
    assert one == two and directory_identity(directory, "m").digest.hex() in one
    loaded = load_model(directory, "m", "bfloat16")
    assert in_memory(loaded.model) is None
    assert loaded.numerics().attention.endswith(f"; {method} dequantized")
    assert live_identity(loaded.model) == directory_identity(directory, "m").digest
    if method == "mxfp4":  # saved again it is packed as before
        return
    # The same numbers as plain weights are another model, and of another class: a kernel may compute the first.
    plain = tmp_path / "plain"
    loaded.model.save_pretrained(plain)
    for path in directory.glob("token*"):
        shutil.copy(path, plain)
    other = load_model(plain, "m", "bfloat16")
    assert other.identity is not None and loaded.identity is not None
    assert other.identity.digest != loaded.identity.digest
    assert "attention" in comparable(other.numerics(), loaded.numerics())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_widened_is_computed_in_the_dtype_that_is_asked_for(
    dtype: str, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    loaded = load_model(quantised.make("fp8", tiny_models["llama"], tmp_path / "fp8"), "m", dtype)
    assert {str(value.dtype) for value in loaded.model.parameters()} == {f"torch.{dtype}"}
    assert loaded.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert loaded.identity is not None and live_identity(loaded.model) == loaded.identity.digest


def test_weights_that_were_changed_after_they_were_widened_are_seen(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(quantised.make("fp8", tiny_models["llama"], tmp_path / "fp8"), "m", "bfloat16").model
    assert live_identity(model)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] += 1.0
    with pytest.raises(Incompatible, match="down_proj"):
        live_identity(model)


def test_scales_count(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    directory = quantised.make("fp8", tiny_models["llama"], tmp_path / "fp8")
    before = directory_identity(directory, "m").digest
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.0.mlp.down_proj.weight_scale_inv"] *= 2
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert directory_identity(directory, "m").digest != before
    assert torch.isfinite(weights["model.layers.0.mlp.down_proj.weight_scale_inv"]).all()


# -- with the package itself, where it is installed -----------------------------------------------------

WORKING = [row for row in TRIED if row.package and not row.refused]
HERE = [row for row in WORKING if quantisation._version(row.package) is not None]


@pytest.mark.skipif(not HERE, reason="no package that computes quantised weights is installed")
@pytest.mark.parametrize("row", HERE or WORKING[:1], ids=lambda row: f"{row.method} {row.scheme}")
def test_what_a_package_computes_has_equal_bits_in_two_processes(
    row: Any, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    directory = quantised.make(row.method, tiny_models["llama"], tmp_path / "model", row.scheme)
    command = [sys.executable, str(ROOT / "benchmarks" / "quantised.py"), str(directory), "bfloat16"]
    one, two = (subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600) for _ in range(2))
    assert one.returncode == 0, one.stderr
    said, again = (done.stdout.rstrip().splitlines()[-1] for done in (one, two))  # below what packages print
    assert said == again and said.endswith("live=True")
    assert f"{row.package} {quantisation._version(row.package)}" in said


def _on_the_fly(name: str) -> Any:
    import transformers

    if name == "torchao":
        from torchao.quantization import Int8WeightOnlyConfig

        return transformers.TorchAoConfig(Int8WeightOnlyConfig())
    if name == "optimum-quanto":
        return transformers.QuantoConfig(weights="int8")
    if name == "bitsandbytes int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def _scale(name: str, layer: Any) -> torch.Tensor:
    if name == "bitsandbytes int8":
        return layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB
    if name == "bitsandbytes nf4":
        return layer.weight.quant_state.absmax
    return getattr(layer.weight, "scale" if name == "torchao" else "_scale")


@pytest.mark.parametrize("name", ["torchao", "optimum-quanto", "bitsandbytes int8", "bitsandbytes nf4"])
def test_a_model_quantised_in_memory_is_prefilled_and_is_neither_the_plain_one_nor_a_saved_one(
    name: str, tiny_models: dict[str, Path]
) -> None:
    if quantisation._version(name.partition(" ")[0]) is None:
        pytest.skip(f"{name} is not installed")
    base = tiny_models["llama"]
    model = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=_on_the_fly(name), dtype=torch.bfloat16, device_map="cpu"
    ).eval()
    identity = live_identity(model)
    assert identity != directory_identity(base, "m").digest
    prefill = LocalPrefill("some text of a document", model, AutoTokenizer.from_pretrained(base), 32)
    assert prefill.cached_prefix()["model"] == identity.hex()
    cache = prefill.cache(8)
    assert torch.isfinite(cache.layers[0].keys[..., : prefill.tokens, :].float()).all()
    assert live_identity(model) == identity
    _scale(name, model.model.layers[0].mlp.down_proj).mul_(1.5)
    with pytest.raises(Incompatible, match="down_proj"):
        live_identity(model)
