"""Layers of transformers as named tensors: read, written, read again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionLayer,
)

from kvswap.artifact.tensors import LayerTensors
from kvswap.model import layers as kinds

TOKENS = 9


def keys(layer: Any) -> Any:
    layer.update(torch.randn(1, 2, TOKENS, 8), torch.randn(1, 2, TOKENS, 4))
    return layer


def states(layer: Any) -> Any:
    for number in range(layer.number_of_states):
        layer.update_conv_state(torch.randn(1, 6, 3), state_idx=number)
        layer.update_recurrent_state(torch.randn(1, 2, 4, 5), state_idx=number)
    return layer


def indexed() -> Any:
    layer = keys(kinds.INDEXED())
    layer.update_indexer(torch.randn(1, TOKENS, 16))
    return layer


CASES = {
    "full": lambda: keys(DynamicLayer()),
    "sliding": lambda: keys(DynamicSlidingWindowLayer(sliding_window=5)),
    "state": lambda: states(LinearAttentionLayer(number_of_states=2)),
    "full+state": lambda: states(keys(LinearAttentionAndFullAttentionLayer())),
    "index": indexed,
}
NEW = {
    "full": DynamicLayer,
    "sliding": lambda: DynamicSlidingWindowLayer(sliding_window=5),
    "state": lambda: LinearAttentionLayer(number_of_states=2),
    "full+state": LinearAttentionAndFullAttentionLayer,
    "index": kinds.INDEXED,
}


def held(layer: Any) -> LayerTensors:
    kind = kinds.kind_of(layer)
    assert kind is not None
    spec = kinds.spec_of(layer, kind, torch.float32)
    rows = min(TOKENS, spec.window - 1) if spec.window else TOKENS
    return LayerTensors(spec, tuple(t.clone() for t in kinds.read(layer, spec, rows)), TOKENS - rows, rows)


def write(layer: Any, tensors: LayerTensors) -> None:
    if kinds.grows(layer):
        kinds.fill_grown(layer, tensors, TOKENS, "cpu")
    kinds.fill_states(layer, tensors, "cpu")


@pytest.mark.parametrize("case", CASES)
def test_what_was_read_is_what_is_written(case: str) -> None:
    original, copy = CASES[case](), NEW[case]()
    tensors = held(original)
    assert kinds.match(copy, tensors.spec)
    write(copy, tensors)
    assert kinds.tokens_in(copy) == kinds.tokens_in(original)
    again = kinds.tensors_in(copy)
    assert [name for name, _ in again] == [spec.name for spec in tensors.spec.tensors]
    for (name, one), (_, other) in zip(again, kinds.tensors_in(original), strict=True):
        assert torch.equal(one, other), name
    torch.manual_seed(1)
    go_on(original)
    torch.manual_seed(1)
    go_on(copy)
    for (name, one), (_, other) in zip(kinds.tensors_in(copy), kinds.tensors_in(original), strict=True):
        assert torch.equal(one, other), f"{name} goes on differently"


def go_on(layer: Any) -> None:
    if kinds.grows(layer):
        layer.update(torch.randn(1, 2, 2, 8), torch.randn(1, 2, 2, 4))
    if isinstance(layer, kinds.INDEXED):
        layer.update_indexer(torch.randn(1, 2, 16))
    if isinstance(layer, kinds.STATES):
        states(layer)


@pytest.mark.parametrize("case", CASES)
def test_what_was_noted_is_put_back(case: str) -> None:
    layer = CASES[case]()
    before = [(name, tensor.clone()) for name, tensor in kinds.tensors_in(layer)]
    seen = kinds.tokens_in(layer)
    put_back = kinds.note(layer)
    go_on(layer)
    assert any(not torch.equal(a, b) for (_, a), (_, b) in zip(kinds.tensors_in(layer), before, strict=True))
    put_back()
    assert kinds.tokens_in(layer) == seen
    for (name, one), (_, other) in zip(kinds.tensors_in(layer), before, strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("case", CASES)
def test_a_layer_takes_tensors_of_its_own_kind_alone(case: str) -> None:
    for other in CASES:
        same_names = {case, other} <= {"full", "sliding"}
        assert kinds.match(NEW[case](), held(CASES[other]()).spec) == (case == other or same_names)
