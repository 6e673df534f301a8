"""What condemns an artifact is computed twice, the second time from the signed bytes, and needs all its grounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import IntegrityError
from kvswap.model import recompute
from kvswap.model.cache import build_cache
from kvswap.trust.accusation import accuses
from kvswap.trust.levels import LevelResult
from kvswap.worker.document import DocumentTokens
from kvswap.worker.first_layer import FirstLayer, require
from tests.attacks.kit import Scene, forge
from tests.support import DOCUMENT, Ingested

BLOCK = 32


@pytest.fixture(scope="module")
def scene(tiny_models: dict[str, Path]) -> Scene:
    from kvswap.model.load import load_model

    loaded = load_model(tiny_models["llama"], "tiny", "float32")
    text = DOCUMENT.read_text()[:300]
    ids = loaded.tokenize(text)
    return Scene(loaded, text, ids, loaded.tokenize(DOCUMENT.read_text()[4000:6000])[: len(ids)], BLOCK)


def first_layer(scene: Scene, made: Ingested, held: list[LayerTensors] | None = None) -> LevelResult:
    """V3 as `ask` takes it, of a cache that was loaded from an artifact; `held`: of what else is in memory."""
    from kvswap.artifact.assembly import load

    tensors = held or load(made.manifest, made.chunks.__getitem__)
    cache = build_cache(scene.loaded.model.config, tensors, len(scene.ids))
    first = FirstLayer(
        scene.loaded,
        scene.loaded.identity.digest,
        made.manifest,
        cache,
        DocumentTokens(scene.ids),
        len(scene.ids),
        lambda: load(made.manifest, made.chunks.__getitem__),
    )
    return first.check()


def shifted(scene: Scene) -> list[LayerTensors]:
    out = scene.copy()
    out[0].k[:, 40:44] += 1
    return out


def slipping(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """A half of the first block comes out wrong so often, as from a processor that errs; the list grows by each look."""
    right: Callable[..., tuple[torch.Tensor, torch.Tensor]] = recompute.first_layer
    looks: list[int] = []

    def slips(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = right(*arguments)
        looks.append(len(looks))
        if len(looks) <= times:
            k = k.clone()
            k[:, 16:32] += 1
        return k, v

    monkeypatch.setattr(recompute, "first_layer", slips)
    return looks


def test_a_slip_of_this_machine_condemns_nobody(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = slipping(monkeypatch, 1)
    assert first_layer(scene, forge(scene, scene.right)).verdict == "passed"
    assert len(looks) == 2


def test_what_is_right_is_looked_at_once(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = slipping(monkeypatch, 0)
    assert first_layer(scene, forge(scene, scene.right)).verdict == "passed"
    assert len(looks) == 1


def test_a_machine_that_always_errs_condemns_nobody(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own cache of the same tokens does not pass either."""
    slipping(monkeypatch, 99)
    step = first_layer(scene, forge(scene, scene.right))
    assert step.verdict == "skipped" and "this reader's own cache" in step.why


def test_what_was_changed_in_memory_condemns_nobody(scene: Scene) -> None:
    """The second look is at the signed bytes."""
    assert first_layer(scene, forge(scene, scene.right), shifted(scene)).verdict == "passed"


def test_what_is_wrong_twice_is_wrong_and_by_how_much_is_said(scene: Scene) -> None:
    made = forge(scene, shifted(scene))
    step = first_layer(scene, made)
    assert accuses(step)
    with pytest.raises(IntegrityError, match=r"4 of \d+ positions .* first is 40: up to \d+\.?\d* times") as caught:
        require(step)
    assert caught.value.details["step"] == "V3" and caught.value.details["proven"] is True
    other = forge(scene, shifted(scene), claim="another processor")
    assert first_layer(scene, other).verdict == "skipped"
    assert not accuses(replace(step, proven=False))


def test_a_model_that_makes_its_own_mask_is_checked_by_intervals(tmp_path: Path) -> None:
    """ALiBi: V5 of single positions gives such a model a mask that it cannot read."""
    from kvswap.model.load import load_model
    from kvswap.trust.noise import Noise
    from kvswap.worker.noise import measure
    from tests.attacks.kit import ATTACKS, run_checks
    from tests.families import build

    loaded = load_model(build(tmp_path / "falcon", "falcon-alibi"), "falcon", "float32")
    noise = Noise.of(measure(loaded, lambda: None).record)
    assert noise.samples is None
    text = DOCUMENT.read_text()[:600]
    ids = loaded.tokenize(text)
    scene = Scene(loaded, text, ids, loaded.tokenize(DOCUMENT.read_text()[4000:6000])[: len(ids)], 64)
    (third, fifth, seventh), _ = run_checks(forge(scene, scene.right), scene, [3, 5, 7], noise)
    assert (third.verdict, fifth.verdict, seventh.verdict) == ("passed", "passed", "passed")
    assert fifth.figures.of_intervals == -(-len(ids) // 64) > fifth.figures.intervals
    lies, _ = run_checks(forge(scene, ATTACKS["swapped history"](scene)), scene, [5, 7], noise, samples=128)
    assert all(accuses(lie) for lie in lies)


def test_a_model_that_was_changed_after_loading_condemns_nobody(scene: Scene) -> None:
    """Its own cache passes, the publisher's does not: what it computes with is not what its files hold."""
    made = forge(scene, scene.right)
    weight = scene.loaded.model.get_input_embeddings().weight
    before = weight.detach().clone()
    try:
        weight.data.mul_(1.5).add_(0.1)
        step = first_layer(scene, made)
        assert step.verdict == "skipped" and "with its files" in step.why or "of its files" in step.why
    finally:
        weight.data.copy_(before)
    assert first_layer(scene, made).verdict == "passed"
