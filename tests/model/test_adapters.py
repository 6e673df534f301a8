"""A base with a LoRA on it is another model than the base, than another LoRA's, and than the two merged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from kvswap.client.loading import LocalPrefill, live_identity
from kvswap.core.errors import Incompatible, NotFound
from kvswap.model import adapters, adapting
from kvswap.model.cache import caching_layers, new_cache
from kvswap.model.catalogue import is_complete
from kvswap.model.identity import base_identity, directory_identity
from kvswap.model.load import load_model
from kvswap.model.prefill import canonical_prefill

IDS = [(i * 7919) % 400 for i in range(90)]


def make(base: Path, target: Path, seed: int = 0, *, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """A LoRA on a model, none of whose numbers is 0, as `peft` saves it."""
    torch.manual_seed(seed)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **more}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(**options))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".lora_" in name:
                value.copy_(torch.randn_like(value) * 0.3)
    model.save_pretrained(target, save_embedding_layers=False)
    weights = load_file(target / adapters.WEIGHTS)
    save_file({name: value.to(dtype) for name, value in weights.items()}, target / adapters.WEIGHTS)
    return target


@pytest.fixture(scope="module")
def base(tiny_models: dict[str, Path]) -> Path:
    return tiny_models["llama"]


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(base, tmp_path_factory.mktemp("adapters") / "one")


@pytest.fixture(scope="module")
def other(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(base, tmp_path_factory.mktemp("adapters") / "two", 1)


def on(base: Path, directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(model, str(directory)).eval()


def digest(directory: Path) -> bytes:
    return directory_identity(directory, "m").digest


def keys(loaded: Any) -> torch.Tensor:
    cache = new_cache(loaded.model.config, len(IDS))
    for _ in canonical_prefill(loaded, cache, IDS, 32):
        pass
    return torch.cat([layer.keys[..., : len(IDS), :].flatten() for layer in caching_layers(cache)])


def merged(base: Path, lora: Path, target: Path) -> Path:
    whole = shutil.copytree(base, target)
    on(base, lora).merge_and_unload().save_pretrained(whole)
    return Path(whole)


def beside(base: Path, lora: Path, target: Path) -> Path:
    """The adapter's two files beside the base's weights."""
    shutil.copytree(base, target)
    for name in (adapters.CONFIG, adapters.WEIGHTS):
        shutil.copy(lora / name, target)
    return target


def test_no_two_of_base_adapters_and_merged_have_one_identity(
    base: Path, lora: Path, other: Path, tmp_path: Path
) -> None:
    assert is_complete(lora)
    three = [base, lora, other, merged(base, lora, tmp_path / "merged")]
    loaded = [load_model(directory, "m", "float32") for directory in three]
    assert len({digest(directory) for directory in three}) == len({one.identity.digest for one in loaded}) == 4
    computed = [keys(one) for one in loaded]
    for index, one in enumerate(computed):
        for two in computed[index + 1 :]:
            assert not torch.equal(one, two)
    for directory, one in zip(three, loaded, strict=True):
        assert one.identity.digest == digest(directory) == live_identity(one.model)
    identity = loaded[1].identity
    assert len(identity.adapters) == 1 and identity.weights == loaded[0].identity.weights
    assert identity.parameters > loaded[0].identity.parameters
    assert "peft" in loaded[1].numerics().attention and "peft" not in loaded[0].numerics().attention


def test_the_cache_is_what_peft_computes(base: Path, lora: Path) -> None:
    model = on(base, lora)
    with torch.no_grad():
        cache = new_cache(model.config, len(IDS))
        model(input_ids=torch.tensor([IDS[:32]]), past_key_values=cache)
        own = torch.cat([layer.keys[..., :32, :].flatten() for layer in caching_layers(cache)])
    loaded = load_model(lora, "m", "float32")
    cache = new_cache(loaded.model.config, len(IDS))
    for _ in canonical_prefill(loaded, cache, IDS[:32], 32):
        pass
    assert torch.equal(own, torch.cat([layer.keys[..., :32, :].flatten() for layer in caching_layers(cache)]))


def test_an_adapter_beside_its_base_or_apart_is_one_model(base: Path, lora: Path, tmp_path: Path) -> None:
    whole = beside(base, lora, tmp_path / "whole")
    assert digest(whole) == digest(lora) != digest(base) == base_identity(whole, "m").digest
    loaded, apart = load_model(whole, "m", "float32"), load_model(lora, "m", "float32")
    assert torch.equal(keys(loaded), keys(apart))
    assert live_identity(loaded.model) == live_identity(apart.model) == digest(lora)
    # What transformers loads where peft is not there is the base, and is named so.
    alone = opened_without(whole)
    assert live_identity(alone) == digest(base)


def opened_without(directory: Path) -> Any:
    from kvswap.model.opening import open_base

    return open_base(directory, "m", torch.float32).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_a_live_model_is_the_one_of_the_adapters_directory(
    base: Path, tmp_path: Path, dtype: torch.dtype, computed: torch.dtype
) -> None:
    directory = make(base, tmp_path / "lora", dtype=dtype)
    name = str(computed).removeprefix("torch.")
    for model in (on(base, directory, computed), load_model(directory, "m", name).model):
        assert live_identity(model) == digest(directory)
    # transformers alone rounds an adapter to the base's dtype: then other numbers are added, which is another model
    rounded = dtype == torch.float32 != computed
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=computed)
    assert (live_identity(model) == digest(directory)) is not rounded


def test_a_live_adapter_that_is_switched_is_another_model(base: Path, lora: Path, other: Path) -> None:
    model = on(base, lora)
    model.load_adapter(str(other), "other")
    assert live_identity(model) == digest(lora)
    model.set_adapter("other")
    assert live_identity(model) == digest(other)
    with model.disable_adapter():
        assert live_identity(model) == digest(base)
    assert live_identity(model) == digest(other)
    model.base_model.set_adapter(["default", "other"])
    both = live_identity(model)
    model.base_model.set_adapter(["other", "default"])
    assert len({both, live_identity(model), digest(lora), digest(other), digest(base)}) == 5


def first(model: Any) -> Any:
    return model.base_model.model.model.layers[0].self_attn.q_proj


CHANGES: dict[str, Callable[[Any], Any]] = {
    "one number": lambda model: first(model).lora_A["default"].weight.data[0, 0].add_(1e-3),
    "base": lambda model: first(model).base_layer.weight.data[3, 5].add_(1e-3),
    "scaled": lambda model: first(model).scale_layer(2.0),
    "merged": lambda model: model.merge_adapter(),
    "one layer off": lambda model: first(model).enable_adapters(False),
    "training": lambda model: model.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_adapter_is_refused_or_another_model(base: Path, lora: Path, change: str) -> None:
    model = on(base, lora)
    assert live_identity(model) == digest(lora)
    CHANGES[change](model)
    if change == "one number":
        assert live_identity(model) not in (digest(lora), digest(base))
        return
    for _ in range(2):
        with pytest.raises(Incompatible) as caught:
            live_identity(model)
        assert caught.value.exit_code == 7


def test_a_text_is_prefilled_by_the_adapter(base: Path, lora: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = on(base, lora)
    with_it = LocalPrefill("some text of a document", model, tokenizer, 32)
    assert with_it.cached_prefix()["model"] == digest(lora).hex()
    one = with_it.cache(8)
    with model.disable_adapter():
        two = LocalPrefill("some text of a document", model, tokenizer, 32).cache(8)
    count = with_it.tokens
    assert not torch.equal(one.layers[1].keys[..., :count, :], two.layers[1].keys[..., :count, :])


SETTINGS = {
    "alpha": {"lora_alpha": 16},
    "scaled by the root": {"use_rslora": True},
    "dora": {"use_dora": True},
    "alpha of one module": {"alpha_pattern": {"q_proj": 32}},
    "rank of one module": {"rank_pattern": {"q_proj": 2}},
    "other modules": {"target_modules": ["q_proj"]},
    "all linear layers": {"target_modules": "all-linear"},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_that_changes_the_computation_counts(base: Path, lora: Path, tmp_path: Path, setting: str) -> None:
    directory = make(base, tmp_path / "lora", **SETTINGS[setting])
    assert digest(directory) != digest(lora)
    loaded = load_model(directory, "m", "float32")
    assert live_identity(loaded.model) == live_identity(on(base, directory)) == digest(directory)
    assert not torch.equal(keys(loaded), keys(load_model(lora, "m", "float32")))


def changed(lora: Path, target: Path, change: dict[str, Any]) -> Path:
    shutil.copytree(lora, target)
    path = target / adapters.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return target


@pytest.mark.parametrize(
    "change",
    [{"lora_dropout": 0.1}, {"peft_version": "0.1"}, {"inference_mode": False}, {"task_type": None}, {"revision": "x"}],
    ids=str,
)
def test_what_changes_no_computation_changes_nothing(lora: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    assert digest(changed(lora, tmp_path / "lora", change)) == digest(lora)


REFUSED: dict[str, dict[str, Any]] = {
    "of the kind IA3": {"peft_type": "IA3"},
    "biases": {"bias": "all"},
    "pissa": {"init_lora_weights": "pissa"},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3, 4]},
    "layer_replication": {"layer_replication": [[0, 1], [0, 2]]},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
    "of_tomorrow": {"of_tomorrow": {"on": True}},
}


@pytest.mark.parametrize("told", REFUSED)
def test_what_is_not_known_is_refused_by_name(lora: Path, tmp_path: Path, told: str) -> None:
    directory = changed(lora, tmp_path / "lora", REFUSED[told])
    for work in (lambda: digest(directory), lambda: load_model(directory, "m", "float32")):
        with pytest.raises(Incompatible) as caught:
            work()
        assert told in caught.value.message and caught.value.details["field"] == "adapters"


def test_an_adapter_that_is_not_whole_is_refused(base: Path, lora: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(lora, tmp_path / "lora"))
    weights = load_file(directory / adapters.WEIGHTS)
    gone = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != gone}, directory / adapters.WEIGHTS)
    with pytest.raises(Incompatible, match="lacks"):
        load_model(directory, "m", "float32")
    save_file({**weights, "base_model.model.model.embed_tokens.weight": torch.ones(2, 2)}, directory / adapters.WEIGHTS)
    with pytest.raises(Incompatible, match="embed_tokens"):
        digest(directory)
    save_file({**weights, "base_model.model.odd.lora_A.weight": torch.ones(2, 2)}, directory / adapters.WEIGHTS)
    with pytest.raises(Incompatible, match="no layer takes"):
        load_model(directory, "m", "float32")
    (directory / adapters.WEIGHTS).unlink()
    with pytest.raises(Incompatible, match=adapters.WEIGHTS):
        digest(directory)


def test_a_base_that_is_not_here_is_named(lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "models_directory", lambda: tmp_path)
    directory = changed(lora, tmp_path / "lora", {"base_model_name_or_path": "org/base"})
    with pytest.raises(NotFound, match="org/base") as caught:
        digest(directory)
    assert caught.value.hint == "kvswap model pull org/base"
    shutil.copytree(json.loads((lora / adapters.CONFIG).read_text())["base_model_name_or_path"], tmp_path / "org--base")
    assert digest(directory) == digest(lora)
    for path in ("../base", "", None):
        with pytest.raises(NotFound):
            digest(changed(lora, tmp_path / f"lora-{path and len(path)}", {"base_model_name_or_path": path}))


def test_without_peft_the_command_that_helps_is_told(lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapting, "find_spec", lambda name: None)
    with pytest.raises(Incompatible, match="peft") as caught:
        load_model(lora, "m", "float32")
    assert caught.value.hint == "pip install peft" and caught.value.exit_code == 7


def test_a_changed_base_is_seen_as_a_change_of_the_adapters_model(base: Path, lora: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(base, tmp_path / "base"))
    directory = changed(lora, tmp_path / "lora", {"base_model_name_or_path": str(own)})
    before = adapters.state(directory)
    (own / "config.json").touch()
    assert adapters.state(directory) != before
