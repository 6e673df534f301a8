"""What is not finite is no cache: it is refused, with layer and dtype, wherever it would leave."""

from __future__ import annotations

import dataclasses
import math
import shutil
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from kvswap.artifact import layout
from kvswap.artifact.assembly import Assembly
from kvswap.client.loading import LocalPrefill
from kvswap.core.errors import Incompatible, IntegrityError
from kvswap.core.limits import LIMITS
from kvswap.model.finite import check_tensors
from kvswap.model.load import load_model
from kvswap.worker.jobs import Jobs
from kvswap.worker.messages import AnswerJob, PublishJob
from tests.support import DOCUMENT
from tests.worker.test_hybrid import Feeder

TEXT = DOCUMENT.read_text()[:400]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def overflowing(
    tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """A model that is well in float32 and whose layer 1 overflows in float16."""
    directory = Path(shutil.copytree(tiny_models[request.param], tmp_path_factory.mktemp("finite") / "model"))
    held = load_file(directory / "model.safetensors")
    held["model.layers.1.self_attn.v_proj.weight"] = torch.sign(held["model.layers.1.self_attn.v_proj.weight"]) * 30_000
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def overflows(loaded: Any) -> None:
    """Let layer 1 overflow from now on."""
    weight = loaded.model.model.layers[1].self_attn.v_proj.weight.data
    weight[:] = torch.sign(weight) * 30_000


def refused(caught: pytest.ExceptionInfo[Incompatible]) -> None:
    assert "layer 1" in caught.value.message and "float16" in caught.value.message
    assert caught.value.details == {"field": "dtype", "layer": 1}
    assert caught.value.exit_code == 7
    assert "float32" in str(caught.value.hint)


def test_a_model_that_overflows_at_once_is_refused_when_it_is_loaded(overflowing: Path) -> None:
    with pytest.raises(Incompatible) as caught:
        load_model(overflowing, "m", "float16")
    refused(caught)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_every_way_out_is_closed(tiny_models: dict[str, Path], kind: str) -> None:
    loaded = load_model(tiny_models[kind], "m", "float16")
    overflows(loaded)
    jobs = Jobs(lambda _: None, threading.Event())
    jobs._loaded = loaded
    ways = (
        lambda: jobs.do(PublishJob(text=TEXT, block_tokens=32, codec="raw", truncate=False)),
        lambda: jobs.do(AnswerJob(question="?", steps=4, block_tokens=32, text=TEXT)),
        lambda: LocalPrefill(TEXT, loaded.model, loaded.tokenizer, 32).cache(8),
        lambda: jobs.do(PublishJob(text=TEXT, block_tokens=1024, codec="raw", truncate=False)),
    )
    for way in ways:
        with pytest.raises(Incompatible) as caught:
            way()
        refused(caught)


def test_the_same_weights_do_in_another_dtype(overflowing: Path) -> None:
    jobs = Jobs(lambda _: None, threading.Event())
    for dtype in ("float32", "bfloat16"):
        jobs._loaded = load_model(overflowing, "m", dtype)
        assert jobs.do(PublishJob(text=TEXT, block_tokens=32, codec="raw", truncate=False)).tensors


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_both_at_once_refuses_what_it_computed(tiny_models: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """The front of a document is computed while its end comes from elsewhere."""
    feeder = Feeder(tiny_models[kind], tmp_path)
    feeder.publish()
    layer = feeder.jobs.loaded.model.model.layers[1]
    layer.self_attn.v_proj.weight.data[:] = math.inf
    with pytest.raises(Incompatible, match="layer 1"):
        feeder.run()
    assert feeder.available


@pytest.mark.parametrize("way", ["met", "again"])
def test_a_block_that_was_computed_in_part_or_again_is_looked_at(
    tiny_models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The rest of the first block arrives while its first layer is computed; what did not fit it is computed again."""
    monkeypatch.setattr(layout, "LIMITS", dataclasses.replace(LIMITS, chunk_target_bytes=1))  # a layer a chunk
    feeder = Feeder(tiny_models["llama"], tmp_path, per_claim=1000)
    feeder.publish()
    layers = feeder.jobs.loaded.model.model.layers
    number = 0 if way == "met" else len(layers) - 1
    layers[number].self_attn.v_proj.weight.data[:] = math.inf
    fitted: list[bool] = []
    fill = Assembly.fill

    def unfit(self: Any, chunks: Any, computed: Any = ()) -> None:
        if computed:
            fitted.append(False)
            self.manifest = msgspec.structs.replace(self.manifest, predictor=object())
            raise IntegrityError("coded against other bits")
        fill(self, chunks, computed)

    if way == "again":
        monkeypatch.setattr(Assembly, "fill", unfit)
    with pytest.raises(Incompatible, match=f"V of layer {number}"):
        feeder.run()
    assert feeder.available == [0] and len(fitted) == (way == "again")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    layer=st.integers(0, 3),
    which=st.sampled_from("KV"),
    place=st.integers(0, 2 * 7 * 8 - 1),
    both=st.booleans(),
)
def test_one_number_is_found(dtype: torch.dtype, value: float, layer: int, which: str, place: int, both: bool) -> None:
    layers = [
        [("k", torch.full((2, 7, 8), 3e4, dtype=dtype)), ("v", torch.full((2, 7, 8), -6e4, dtype=dtype))]
        for _ in range(4)
    ]
    check_tensors(layers, "d")
    tensor = dict(layers[layer])[which.lower()]
    tensor.view(-1)[place] = value
    if both:  # infinities of both signs give no infinite sum
        tensor.view(-1)[(place + 1) % tensor.numel()] = -value
    with pytest.raises(Incompatible, match=f"{which} of layer {layer}"):
        check_tensors(layers, "d")


def test_large_numbers_are_no_overflow() -> None:
    large = torch.full((2, 64, 8), torch.finfo(torch.float32).max)
    check_tensors([[("k", large), ("v", large)]], "float32")


def test_an_answer_of_no_numbers_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """The cache may be well and the rest of the model not."""
    directory = Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))
    held = load_file(directory / "model.safetensors")
    held["model.norm.weight"] = held["model.norm.weight"] * 60_000
    held["lm_head.weight"] = torch.sign(held["lm_head.weight"]) * 60_000
    save_file(held, directory / "model.safetensors", metadata={"format": "pt"})
    jobs = Jobs(lambda _: None, threading.Event())
    jobs._loaded = load_model(directory, "m", "float16")
    for way in (
        lambda: jobs.do(AnswerJob(question="?", steps=4, block_tokens=32, text=TEXT)),
        lambda: jobs.do(PublishJob(text=TEXT, block_tokens=32, codec="raw", truncate=False)),
    ):
        with pytest.raises(Incompatible, match="float16"):
            way()
