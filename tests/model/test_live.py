"""The identity of a model in memory is that of what it computes with, at every call."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from kvswap.client.loading import LocalPrefill, live_identity
from kvswap.core.errors import Incompatible
from kvswap.model.identity import directory_identity


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


class Lora(torch.nn.Module):
    """What `load_adapter` puts in a projection's place."""

    def __init__(self, base: torch.nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = torch.nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Odd(torch.Tensor):
    """A tensor that, as torchao's do, cannot be compared."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.equal:
            raise NotImplementedError("equal is not implemented for Odd")
        return super().__torch_function__(function, types, args, kwargs or {})


def projection(model: Any) -> Any:
    return model.model.layers[1].self_attn.q_proj


def lora(model: Any) -> None:
    model.model.layers[1].self_attn.q_proj = Lora(projection(model))


def one_more(model: Any) -> None:
    model.model.layers[0].extra = torch.nn.Parameter(torch.zeros(3))


def swap(model: Any) -> None:
    first, second = model.model.layers[0], model.model.layers[1]
    model.model.layers[0], model.model.layers[1] = second, first


def other_data(model: Any) -> None:
    projection(model).weight.data = projection(model).weight.data.flip(0)


def in_place(model: Any) -> None:
    with torch.no_grad():
        projection(model).weight[3, 5] += 1e-3


def other_parameter(model: Any) -> None:
    projection(model).weight = torch.nn.Parameter(projection(model).weight.detach() * 2)


def whole_state(model: Any) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


def frequencies(model: Any) -> None:
    model.model.rotary_emb.inv_freq *= 1.01


def rounded_frequencies(model: Any) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.to(torch.bfloat16).float()


def odd(model: Any) -> None:
    weight = projection(model).weight.detach().as_subclass(Odd)
    projection(model).weight = torch.nn.Parameter(weight, requires_grad=False)


def other_setting(model: Any) -> None:
    model.config.rms_norm_eps = 0.1


CHANGES: dict[str, Callable[[Any], Any]] = {
    "in place": in_place,
    "through .data": lambda model: projection(model).weight.data.mul_(1.5),
    "one number through .data": lambda model: projection(model).weight.data[3, 5].add_(1e-3),
    "a row through .data": lambda model: model.model.embed_tokens.weight.data[17].zero_(),
    "other .data": other_data,
    "another parameter": other_parameter,
    "load_state_dict": whole_state,
    "layers in another order": swap,
    "an adapter": lora,
    "one more parameter": one_more,
    "frequencies": frequencies,
    "frequencies rounded": rounded_frequencies,
    "training": lambda model: model.train(),
    "a hook": lambda model: model.model.layers[1].register_forward_hook(lambda module, args, out: out),
    "a hook before": lambda model: model.model.layers[1].register_forward_pre_hook(lambda module, args: args),
    "a setting": other_setting,
    "a tensor of another kind": odd,
}
HARMLESS: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda model: None,
    "requires_grad": lambda model: model.requires_grad_(False),
    "pad token": lambda model: setattr(model.config, "pad_token_id", 2),
    "generation": lambda model: setattr(model.generation_config, "temperature", 0.3),
    "attention": lambda model: model.set_attn_implementation("eager"),
    "use_cache": lambda model: setattr(model.config, "use_cache", False),
    "read": lambda model: projection(model).weight.sum(),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_changed_model_is_another_also_after_it_was_known(tiny_models: dict[str, Path], change: str) -> None:
    known = load(tiny_models["llama"])
    assert live_identity(known) == directory_identity(tiny_models["llama"], "m").digest
    for model in (known, load(tiny_models["llama"])):
        CHANGES[change](model)
        for _ in range(2):
            with pytest.raises(Incompatible) as caught:
                live_identity(model)
            assert caught.value.exit_code == 7


@pytest.mark.parametrize("change", sorted(HARMLESS))
def test_what_changes_no_computation_changes_nothing(tiny_models: dict[str, Path], change: str) -> None:
    model = load(tiny_models["llama"])
    before = live_identity(model)
    HARMLESS[change](model)
    assert live_identity(model) == before


def test_what_is_undone_is_the_model_again(tiny_models: dict[str, Path]) -> None:
    model = load(tiny_models["llama"])
    before = live_identity(model)
    projection(model).weight.data[0, 0] += 1.0
    with pytest.raises(Incompatible, match="q_proj"):
        live_identity(model)
    model.load_state_dict(load(tiny_models["llama"]).state_dict())
    assert live_identity(model) == before


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_number_of_any_weight_counts(tiny_models: dict[str, Path], data: st.DataObject) -> None:
    model = _known(tiny_models["qwen3"])
    name = data.draw(st.sampled_from(sorted(dict(model.named_parameters()))))
    flat = model.get_parameter(name).data.view(-1)
    place = data.draw(st.integers(0, flat.numel() - 1))
    kept = flat[place].clone()
    flat[place] = kept + 0.25
    with pytest.raises(Incompatible, match="differs"):
        live_identity(model)
    flat[place] = kept
    assert live_identity(model) == directory_identity(tiny_models["qwen3"], "m").digest


_models: dict[Path, Any] = {}


def _known(directory: Path) -> Any:
    if directory not in _models:
        _models[directory] = load(directory)
        live_identity(_models[directory])
    return _models[directory]


def test_a_model_that_was_cast_after_loading_has_other_frequencies(tiny_models: dict[str, Path]) -> None:
    """`.to(dtype)` rounds the rotary table too, which loading in that dtype does not."""
    with pytest.raises(Incompatible, match="inv_freq"):
        live_identity(load(tiny_models["llama"]).to(torch.bfloat16))
    live_identity(load(tiny_models["llama"], torch.bfloat16))


def test_a_prefix_of_a_changed_model_is_not_the_known_ones(tiny_models: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    model = load(tiny_models["llama"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    LocalPrefill("some text of a document", model, tokenizer, 32).cached_prefix()
    projection(model).weight.data.mul_(1.1)
    with pytest.raises(Incompatible):
        LocalPrefill("some text of a document", model, tokenizer, 32).cached_prefix()


def test_weights_that_are_joined_when_they_are_loaded(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """transformers keeps experts as one tensor, under another name than the files."""
    from transformers import Qwen3MoeConfig

    directory = Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))
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
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    model = load(directory)
    assert live_identity(model) == directory_identity(directory, "m").digest
    model.model.layers[0].mlp.experts.down_proj.data[1, 2, 3] += 1.0
    with pytest.raises(Incompatible, match="down_proj"):
        live_identity(model)


def test_sums_on_a_device_tell_any_number_too() -> None:
    """What a model on a GPU is known by, without copying it."""
    from kvswap.model.live import sums

    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.bool):
        tensor = (torch.randn(33, 65) > 0).to(dtype) if dtype == torch.bool else (torch.randn(33, 65) * 9).to(dtype)
        before = sums(tensor)
        assert sums(tensor.clone()) == before
        assert sums(tensor.flip(0)) != before and sums(tensor.flip(1)) != before
        changed = tensor.clone()
        changed[7, 9] = changed[7, 9] == 0
        assert sums(changed) != before or torch.equal(changed, tensor)
