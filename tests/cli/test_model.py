"""`kvswap model`: what is there, what is got, and what a model's cache is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvswap.cli.main import cli
from kvswap.core.errors import Incompatible


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory of models."""
    monkeypatch.setenv("KVSWAP_MODELS", str(tmp_path / "models"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb; what it says on standard output, and fails with what it raises."""

    def run(*arguments: str) -> str:
        capfd.readouterr()
        done = CliRunner().invoke(cli, ["model", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output + capfd.readouterr().out

    return run


def configured(directory: Path, **fields: Any) -> str:
    """A directory with a configuration alone: no weights are looked at."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(fields))
    return str(directory)


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
GEMMA = LLAMA | {
    "model_type": "gemma3_text",
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}


def test_the_catalogue_is_listed_whether_it_is_here_or_not(said: Any, tiny_models: dict[str, Path]) -> None:
    rows = {row["name"]: row for row in json.loads(said("ls", "--json"))["models"]}
    assert rows["smollm2-135m"]["here"] is False and rows["smollm2-135m"]["identity"] is None
    assert rows["smollm2-135m"]["license"]
    head, *lines = said("ls").strip().splitlines()
    assert head.split() == ["NAME", "HERE", "IDENTITY", "LICENSE", "DIRECTORY"]
    assert any(line.split()[:3] == ["smollm2-135m", "no", "-"] for line in lines)


def test_what_was_pulled_is_told_with_its_identity(
    said: Any, models: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvswap.model import pull
    from kvswap.model.identity import directory_identity

    asked = []

    def pulled(name: str, into: Path, note: Any) -> Path:
        asked.append((name, into))
        note("fetching", 0.5)
        return tiny_models["llama"]

    monkeypatch.setattr(pull, "pull", pulled)
    told = json.loads(said("pull", "smollm2-135m", "--json"))
    identity = directory_identity(tiny_models["llama"], "smollm2-135m")
    assert asked == [("smollm2-135m", models)]
    assert told == {
        "name": "smollm2-135m",
        "directory": str(tiny_models["llama"]),
        "identity": identity.digest.hex(),
        "parameters": identity.parameters,
    }
    assert identity.digest.hex()[:16] in said("pull", "smollm2-135m")


def test_what_a_cache_is_made_of(said: Any, tmp_path: Path) -> None:
    text = said("check", configured(tmp_path / "llama", **LLAMA))
    assert "cache    3 layers full, 2 x 16\n" in text
    assert "768" not in text and "384 bytes a token in bfloat16" in text  # 3 layers, K and V, 2 heads of 16, 2 bytes
    assert "works    publish, fetch, ask, verify" in text
    assert "768 bytes a token in float32" in said("check", str(tmp_path / "llama"), "--dtype", "float32")


def test_windows_are_told_beside_what_grows(said: Any, tmp_path: Path) -> None:
    path = configured(tmp_path / "gemma", **GEMMA)
    told = json.loads(said("check", path, "--json"))
    assert [layer["kind"] for layer in told["layers"]] == ["sliding", "sliding", "full"]
    assert told["token_bytes"] == 128 and told["window_bytes"] > 0 and told["tested"] and told["exchanged"]
    text = said("check", path)
    assert "2 layers sliding of 24, 2 x 16" in text and "of windows" in text


def test_a_model_that_is_refused_says_why_and_nothing_of_sizes(said: Any, tmp_path: Path) -> None:
    from kvswap.model.families import FAMILIES

    refused = next(family for family in FAMILIES.values() if family.refused)
    path = configured(tmp_path / "x", **LLAMA | {"model_type": refused.model_type})
    text = said("check", path)
    assert "\nrefused  " in text and refused.refused in text and "works" not in text and "size" not in text
    assert json.loads(said("check", path, "--json"))["exchanged"] is False


def test_a_model_type_that_nobody_tried_is_said_to_be_untested(said: Any, tmp_path: Path) -> None:
    assert "not among those tested" in said("check", configured(tmp_path / "x", **LLAMA | {"model_type": "new_one"}))


def test_what_is_no_configuration_is_told(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("[1]")
    done = CliRunner().invoke(cli, ["model", "check", str(tmp_path / "x")])
    assert isinstance(done.exception, Incompatible) or done.exit_code == Incompatible("x", field="y").exit_code


def test_an_adapter_is_told_with_its_base(said: Any, tmp_path: Path) -> None:
    base = configured(tmp_path / "llama", **LLAMA)
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_model.safetensors").touch()
    (lora / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))
    assert json.loads(said("check", str(lora), "--json"))["adapter"] is True
    assert f"a LoRA on the model in {base}" in said("check", str(lora)) and "3 layers full" in said("check", str(lora))
    assert json.loads(said("check", base, "--json"))["adapter"] is False


def test_weights_that_are_quantised_in_a_way_that_does_not_work_are_told(said: Any, tmp_path: Path) -> None:
    works, not_ = {"quant_method": "gptq", "bits": 4}, {"quant_method": "hqq"}
    assert "works    publish" in said("check", configured(tmp_path / "a", **LLAMA, quantization_config=works))
    text = said("check", configured(tmp_path / "b", **LLAMA, quantization_config=not_))
    assert "quantised with hqq, which is refused" in text and "works" not in text


def test_terms_are_told_before_anything_is_downloaded(
    said: Any, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvswap.model import pull

    monkeypatch.setattr(pull, "pull", lambda name, models, progress: tiny_models["llama"])
    done = CliRunner().invoke(cli, ["model", "pull", "gemma3-270m"])
    assert done.exit_code == 0 and "Gemma Terms of Use" in done.stderr + done.output


def test_a_misspelt_model_is_told_which_was_meant(models: Path) -> None:
    from kvswap.core.errors import UsageError
    from kvswap.model import catalogue

    with pytest.raises(UsageError, match="did you mean 'smollm2-135m'"):
        catalogue.local_directory("smolm2-135m", models)
    with pytest.raises(UsageError, match="unknown model 'zzz'$"):
        catalogue.local_directory("zzz", models)
