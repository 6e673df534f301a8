"""What condemns an artifact is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvswap.core.errors import IntegrityError
from kvswap.model import recompute
from kvswap.model.load import LoadedModel, load_model
from kvswap.model.prefill import prefill
from kvswap.worker.verifying import check_first_layer

IDS = [3 + i % 300 for i in range(100)]


@pytest.fixture(scope="module")
def loaded(tiny_models: dict[str, Path]) -> LoadedModel:
    return load_model(tiny_models["llama"], "tiny", "float32")


def slipping(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """The half of the first block comes out wrong so often, as from a processor that errs; the list grows by each look."""
    right: Callable[..., tuple[torch.Tensor, torch.Tensor]] = recompute.first_layer
    looks: list[int] = []

    def first_layer(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = right(*arguments)
        looks.append(len(looks))
        if len(looks) <= times:
            k = k.clone()
            k[:, 16:32] += 1
        return k, v

    monkeypatch.setattr(recompute, "first_layer", first_layer)
    return looks


def test_a_slip_of_this_machine_condemns_nobody(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = slipping(monkeypatch, 1)
    check_first_layer(loaded, prefill(loaded, IDS, 32), IDS, 32)
    assert len(looks) == 2


def test_what_is_right_is_looked_at_once(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = slipping(monkeypatch, 0)
    check_first_layer(loaded, prefill(loaded, IDS, 32), IDS, 32)
    assert len(looks) == 1


def test_what_is_wrong_twice_is_wrong_and_by_how_much_is_said(loaded: LoadedModel) -> None:
    cache = prefill(loaded, IDS, 32)
    cache.layers[0].keys[0, :, 40:44] += 1
    with pytest.raises(IntegrityError, match=r"4 of 100 positions .* first is 40: up to \d+\.?\d* times") as caught:
        check_first_layer(loaded, cache, IDS, 32)
    assert caught.value.details["step"] == "V3"
