"""What `open_model` asks of transformers and refuses of its answer, condition by condition."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kvswap.core.errors import Incompatible, KvswapError, NotFound
from kvswap.model import opening
from kvswap.model.opening import belongs, open_configuration, open_model, open_tokenizer

SOUND: dict[str, Any] = {"missing_keys": [], "mismatched_keys": [], "error_msgs": [], "unexpected_keys": []}


class Tiny(nn.Module):
    """Layers in a list, one module with a weight, and one that only holds others."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(2, 2, bias=False)})])
        self.head = nn.Linear(2, 2)
        self.rotary_emb = nn.Identity()
        self.holder = nn.ModuleDict({"inner": nn.Linear(2, 2)})


@pytest.fixture
def copy(tiny_models: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models["llama"], tmp_path / "copy"))


def answered(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any] | BaseException) -> dict[str, Any]:
    """Let transformers answer so; what it was asked for."""
    asked: dict[str, Any] = {}

    def from_pretrained(directory: str, **options: Any) -> Any:
        asked.update(options)
        if isinstance(info, BaseException):
            raise info
        return Tiny(), SOUND | info

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    return asked


def test_nothing_is_run_fetched_or_unpickled(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answered(monkeypatch, {})
    open_model(copy, "m", torch.float32)
    assert asked["trust_remote_code"] is False and asked["local_files_only"] is True
    assert asked["use_safetensors"] is True and asked["attn_implementation"] == "sdpa"
    assert asked["output_loading_info"] is True and asked["dtype"] is torch.float32
    for name, work in (
        ("AutoTokenizer", lambda: open_tokenizer(copy, "m")),
        ("AutoConfig", lambda: open_configuration(copy)),
    ):
        options: dict[str, Any] = {}
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", lambda _, seen=options, **given: seen.update(given))
        work()
        assert options == {"local_files_only": True, "trust_remote_code": False}


REFUSED: dict[str, dict[str, Any]] = {
    "lack head.weight": {"missing_keys": ["head.weight"]},
    "another shape: head.weight ([2] instead of [3])": {"mismatched_keys": [("head.weight", [2], [3])]},
    "what went wrong": {"error_msgs": ["what went wrong"]},
    "do not take head.scale": {"unexpected_keys": ["head.scale", "vision.weight"]},
    "do not take layers.0.proj.bias": {"unexpected_keys": ["layers.0.proj.bias"]},
    "do not take layers.0.other.weight": {"unexpected_keys": ["layers.0.other.weight"]},
}


@pytest.mark.parametrize("told", REFUSED)
def test_each_difference_between_files_and_model_is_refused_by_name(
    told: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, REFUSED[told])
    with pytest.raises(Incompatible) as caught:
        open_model(copy, "m", torch.float32)
    assert told in caught.value.message and caught.value.details["field"] == "weights"


@pytest.mark.parametrize(
    "name",
    ["vision.weight", "layers.1.proj.weight", "mtp.0.weight", "holder.weight", "rotary_emb.inv_freq",
     "layers.0.proj.rotary_emb.inv_freq", "layers.0.masked_bias_mask", "head.bias_mask", "rotary_emb.sin_cached"],
)  # fmt: skip
def test_weights_beside_the_model_and_tables_are_taken(name: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered(monkeypatch, {"unexpected_keys": [name]})
    model, tokenizer = open_model(copy, "m", torch.float32)
    assert isinstance(model, Tiny) and tokenizer is not None


@pytest.mark.parametrize(
    ("name", "inside"),
    [("head.x", True), ("layers.0.proj.x", True), ("layers.0.new.x", True), ("layers.0.x", True), ("layers.9.x", False),
     ("holder.x", False), ("holder.inner.x", True), ("holder.other.x", False), ("nowhere.x", False), ("x", False)],
)  # fmt: skip
def test_what_lies_in_a_layer(name: str, inside: bool) -> None:
    assert belongs(Tiny(), name) is inside


@pytest.mark.parametrize("kind", ["llama", "a kind of its own", None])
def test_code_is_refused_where_there_is_no_class(kind: str | None, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "mine.Mine"}, "model_type": kind}
    path.write_text(json.dumps(config))
    answered(monkeypatch, {})
    if kind == "llama":
        open_model(copy, "m", torch.float32)
        return
    with pytest.raises(Incompatible, match="auto_map"):
        open_model(copy, "m", torch.float32)


def test_adapters_and_experts_that_are_not_whole_are_refused_before_the_library(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answered(monkeypatch, {})
    monkeypatch.setattr(opening, "headers", lambda directory: _experts_with_a_gap())
    with pytest.raises(Incompatible, match="lack"):
        open_model(copy, "m", torch.float32)
    monkeypatch.undo()
    asked |= answered(monkeypatch, {})
    (copy / "adapter_config.json").write_text("{}")
    for work in (
        lambda: open_model(copy, "m", torch.float32),
        lambda: open_tokenizer(copy, "m"),
        lambda: open_configuration(copy),
    ):
        with pytest.raises(Incompatible, match="adapter"):
            work()
    assert not asked


def _experts_with_a_gap() -> dict[str, dict[str, Any]]:
    return {f"layers.0.mlp.experts.{n}.up.weight": {"shape": [2, 2], "dtype": "F32"} for n in (0, 2)}


@pytest.mark.parametrize(
    "error",
    [MemoryError("m"), torch.OutOfMemoryError("m"), NotFound("m")],
    ids=lambda error: type(error).__name__,
)
def test_own_trouble_is_no_fault_of_the_model(
    error: BaseException, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, error)
    with pytest.raises(type(error)):
        open_model(copy, "m", torch.float32)


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), KeyError("k"), RecursionError("deep"), OSError("o"), Exception()]
)
def test_whatever_the_library_raises_is_told_in_one_line(
    error: Exception, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered(monkeypatch, error)
    with pytest.raises(KvswapError) as caught:
        open_model(copy, "m", torch.float32)
    assert caught.value.exit_code == 7 and "transformers cannot load 'm'" in caught.value.message
    assert "\n" not in caught.value.message
