"""Probes: how servers that compute otherwise are told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kvswap.artifact.manifest import EngineProbe
from kvswap.core.errors import Incompatible
from kvswap.integrations import llamacpp
from kvswap.integrations.llamacpp import LayerRows, SlotFile, parse_slot_file
from kvswap.integrations.llamacpp.gguf import read_gguf
from kvswap.integrations.llamacpp.mapping import GgufLayout, layout_for
from kvswap.integrations.llamacpp.probe import TOKENS, distances, judge, probe_ids, probe_of
from tests.integrations.llamacpp.goldens import slot_file
from tests.llama import tiny

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> GgufLayout:
    path = tiny.write(tmp_path_factory.mktemp("gguf") / "dense.gguf")
    return layout_for(read_gguf(path), llamacpp.shape_of(parse_slot_file(slot_file("dense-f16"))))


def state(change: float = 0.0, first: float = 0.0) -> SlotFile:
    """The state of the probe's tokens with values as they may be; `change` of them in all layers but the first."""
    made, other = np.random.default_rng(1), np.random.default_rng(2)
    layers = []
    for layer in range(2):
        pair = []
        for _ in range(2):
            values = made.standard_normal((TOKENS, 64))
            values += (first if layer == 0 else change) * other.standard_normal((TOKENS, 64))
            pair.append(values.astype(np.float16).view(np.uint8))
        layers.append(LayerRows(*pair))
    return llamacpp.build(llamacpp.shape_of(parse_slot_file(slot_file("dense-f16"))), probe_ids(272), [layers])


def test_equal_states_are_bitwise_and_rounding_is_within_tolerance(layout: GgufLayout) -> None:
    own = probe_of(layout, state(), "b1")
    assert judge(probe_of(layout, state(), "another build"), own).claim == "bitwise"
    near = judge(probe_of(layout, state(0.02), "b1"), own)
    assert near.claim == "tolerance" and 0 < near.apart.mean < 0.05 and near.apart.first == 0


@pytest.mark.parametrize("changes", [(0.4, 0.0), (0.0, 0.02), (1.0, 1.0)])
def test_another_computation_is_refused(layout: GgufLayout, changes: tuple[float, float]) -> None:
    own = probe_of(layout, state(), "b1")
    with pytest.raises(Incompatible, match="something else") as refused:
        judge(probe_of(layout, state(*changes), "b1"), own)
    assert refused.value.details["field"] == "engine" and "flags" in refused.value.hint


def test_sketches_of_strangers_are_never_near(layout: GgufLayout) -> None:
    own = probe_of(layout, state(), "b1")
    for sketch in (b"", b"\0", own.sketch[:-64], own.sketch + bytes(64), b"\xff\x7f" * (len(own.sketch) // 2)):
        other = msgspec.structs.replace(own, sketch=sketch, digest=bytes(32))
        assert distances(other, own).mean == float("inf")
        with pytest.raises(Incompatible):
            judge(other, own)
    for unknown in (None, EngineProbe("another engine", "", own.digest, own.sketch)):
        with pytest.raises(Incompatible, match="does not say"):
            judge(unknown, own)


def test_quantised_values_are_compared_as_numbers(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "dense.gguf")
    shape = llamacpp.shape_of(parse_slot_file(slot_file("dense-q8_0")))
    layout = layout_for(read_gguf(path), shape)
    made = np.random.default_rng(3)

    def quantised(step: float) -> SlotFile:
        blocks = made.integers(-100, 100, (TOKENS, 2, 34)).astype(np.int8).view(np.uint8)
        blocks[..., :2] = np.full((TOKENS, 2, 1), step, np.float16).view(np.uint8)
        rows = blocks.reshape(TOKENS, -1)
        return llamacpp.build(shape, probe_ids(272), [[LayerRows(rows, rows)] * 2])

    first = quantised(0.01)
    made = np.random.default_rng(3)
    second = quantised(0.0102)
    apart = distances(probe_of(layout, first, ""), probe_of(layout, second, ""))
    assert 0.01 < apart.mean < 0.03


def test_a_probe_is_of_the_probes_tokens(layout: GgufLayout) -> None:
    short = llamacpp.cut(state(), 10)
    with pytest.raises(Incompatible, match="10 tokens"):
        probe_of(layout, short, "")
    ids = probe_ids(100)
    assert len(ids) == TOKENS and max(ids) < 100 and len(set(ids)) > 50
    assert replace(layout, halves=False) != layout
