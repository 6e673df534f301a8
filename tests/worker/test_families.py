"""Every family of the table, bit for bit: loaded whole, from a shorter prefix, and fetched while it is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvswap.artifact.tensors import LayerTensors
from kvswap.model.cache import build_cache, held_tensors, layer_specs
from kvswap.model.load import load_model
from kvswap.model.prefill import canonical_prefill, greedy, prefill
from tests.families import FAMILIES, build
from tests.support import DOCUMENT
from tests.worker.test_hybrid import Feeder

BLOCK, STEPS = 32, 12
KINDS = (
    "llama",
    "gemma3-24",
    "gpt-oss",
    "deepseek-v3",
    "mistral3",
    "gemma3n",
    "lfm2",
    "qwen3.5",
    "falcon-h1",
    "deepseek-v3.2",
)  # one of each; the rest in test-model
EACH = [name if name in KINDS else pytest.param(name, marks=pytest.mark.model) for name in FAMILIES]
TEXT = DOCUMENT.read_text()[:1200]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Made when they are asked for."""
    root = tmp_path_factory.mktemp("families")

    class Ingested(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = build(root / name, name)
            return self[name]

    return Ingested()


def copied(held: list[LayerTensors]) -> list[LayerTensors]:
    return [LayerTensors(t.spec, tuple(one.clone() for one in t.tensors), t.first, t.tokens) for t in held]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", EACH)
def test_a_cache_continues_bit_for_bit(directories: dict[str, Path], family: str, dtype: str) -> None:
    """Whole, and from two blocks with the rest prefilled; with any one tensor empty the logits are others."""
    loaded = load_model(directories[family], family, dtype)
    ids = loaded.tokenize(TEXT)[: 4 * BLOCK + 11]
    question = loaded.tokenize_continuation("\n\nQuestion: what?\nAnswer:")
    cache = prefill(loaded, ids, BLOCK)
    held = copied(held_tensors(cache, layer_specs(cache), len(ids)))
    start = 2 * BLOCK
    front = prefill(loaded, ids[:start], BLOCK)
    half = copied(held_tensors(front, layer_specs(front), start))
    wanted = greedy(loaded, cache, len(ids), question, STEPS).logits_digest

    whole = build_cache(loaded.model.config, copied(held), len(ids))
    assert greedy(loaded, whole, len(ids), question, STEPS).logits_digest == wanted
    begun = build_cache(loaded.model.config, half, start)
    for _ in canonical_prefill(loaded, begun, ids, BLOCK, start):
        pass
    assert greedy(loaded, begun, len(ids), question, STEPS).logits_digest == wanted

    def first(tensors: list[LayerTensors]) -> str:
        # One token alone: what the last layer's convolution holds is of no use to the tokens that come after three.
        return greedy(
            loaded, build_cache(loaded.model.config, tensors, len(ids)), len(ids), question[:1], 1
        ).logits_digest

    right = first(copied(held))
    for place, layer in enumerate(held):
        for number, spec in enumerate(layer.spec.tensors):
            damaged = copied(held)
            torch.Tensor.zero_(damaged[place].tensors[number])
            assert first(damaged) != right, f"{spec.name} of cache layer {place} means nothing"


@pytest.mark.parametrize("family", EACH)
def test_both_at_once_is_bit_for_bit(directories: dict[str, Path], tmp_path: Path, family: str) -> None:
    feeder = Feeder(directories[family], tmp_path)
    feeder.publish(TEXT)
    request: dict[str, Any] = {"text": TEXT}
    whole = feeder.jobs.run({**request, "job": "answer", "question": "What?", "steps": STEPS, "block_tokens": BLOCK,
                             "ignore_eos": True})  # fmt: skip
    feeder.available.clear()
    got = feeder.run(**request)
    assert got["logits_digest"] == whole["logits_digest"] and got["claim"] == "bitwise"
    assert 0 < len(feeder.available) < len(feeder.units)
