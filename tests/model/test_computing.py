"""`numerics` names what computes in the place of torch's and transformers' code, by what is in the model."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.qwen3_next import modeling_qwen3_next

from kvswap.model import computing
from kvswap.model.computing import attention_text, described
from kvswap.model.load import load_model
from kvswap.trust.accusation import comparable
from tests import families as tiny


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A package of this name, installed with version 1.2, with a function, a module and a tensor of its own."""

    def install(name: str) -> Any:
        made = types.ModuleType(name)
        code = (
            "import torch\ndef kernel(*args, **kwargs): raise NotImplementedError\n"
            "class Linear(torch.nn.Linear): pass\nclass Weight(torch.Tensor): pass\n"
        )
        exec(code, made.__dict__)  # noqa: S102 - so that what it defines says it is of this package
        monkeypatch.setitem(sys.modules, name, made)
        distribution = {"fla": "flash-linear-attention"}.get(name, name.replace("_", "-"))
        monkeypatch.setattr(computing, "packages_distributions", lambda: {name: [distribution]})
        monkeypatch.setattr(computing, "version", lambda _: "1.2")
        computing._with_version.cache_clear()
        return made

    yield install
    computing._with_version.cache_clear()


@pytest.fixture(scope="module")
def plain(tiny_models: dict[str, Path]) -> Any:
    return load_model(tiny_models["llama"], "m", "float32")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(tiny.build(tmp_path_factory.mktemp("computing") / "m", "qwen3-next"), "m", "float32")


def replace_function(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers does it when it finds the package: the wrapper that it calls holds the package's function."""
    wrapped = modeling_qwen3_next.torch_chunk_gated_delta_rule
    place = wrapped.__code__.co_freevars.index("implementation")
    monkeypatch.setattr(wrapped.__closure__[place], "cell_contents", made.kernel)


@pytest.mark.parametrize(
    ("name", "told"),
    [("fla", "flash-linear-attention 1.2"), ("causal_conv1d", "causal-conv1d 1.2"), ("mamba_ssm", "mamba-ssm 1.2")],
)
def test_a_kernel_of_another_package_is_a_class_of_its_own(
    name: str, told: str, hybrid: Any, package: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hybrid.numerics()
    assert before.attention == "sdpa"
    replace_function(package(name), monkeypatch)
    after = hybrid.numerics()
    assert after.attention == f"sdpa; {told}"
    assert "attention" in comparable(before, after)


def test_a_package_that_is_installed_and_computes_nothing_is_not_named(
    plain: Any, package: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_function(package("fla"), monkeypatch)
    assert plain.numerics().attention == "sdpa"  # no layer of a Llama uses it


def kernelized(model: Any, made: Any) -> None:
    """As the hub's kernels do it: the module's forward is another's."""
    model.model.norm.forward = types.MethodType(made.kernel, model.model.norm)


def another_module(model: Any, made: Any) -> None:
    model.lm_head = made.Linear(64, 400, bias=False)


def another_tensor(model: Any, made: Any) -> None:
    norm = model.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.detach().as_subclass(made.Weight), requires_grad=False)


@pytest.mark.parametrize("change", [kernelized, another_module, another_tensor], ids=lambda change: change.__name__)
def test_what_is_put_into_a_model_is_named(
    change: Callable[[Any, Any], None], tiny_models: dict[str, Path], package: Callable[[str], Any]
) -> None:
    model = load_model(tiny_models["llama"], "m", "float32").model
    assert described(model) == []
    change(model, package("made_up"))
    assert attention_text(model) == "sdpa; made-up 1.2"


def test_kernels_that_were_loaded_from_the_hub_are_named_by_commit(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = types.ModuleType("anything")
    loaded.__file__ = f"/c/hub/models--kernels-community--quantization/snapshots/{'ab' * 20}/build/ops.so"
    monkeypatch.setitem(sys.modules, "anything", loaded)
    assert described(plain.model) == ["kernels kernels-community/quantization abababababab"]


def test_experts_that_are_computed_otherwise_than_by_default_are_named(tmp_path: Path) -> None:
    model = load_model(tiny.build(tmp_path / "m", "qwen3-moe"), "m", "float32").model
    assert attention_text(model) == "sdpa"
    model.set_experts_implementation("eager")
    assert attention_text(model) == "sdpa; experts eager"


def test_attention_that_the_class_lacks_is_named(tmp_path: Path) -> None:
    loaded = load_model(tiny.build(tmp_path / "m", "gpt-oss"), "m", "float32")
    assert loaded.numerics().attention == "eager"
