"""What a predictor is trained on, and how large it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.artifact.manifest import LayerSpec
from kvswap.codec import predictive
from kvswap.exchange import predictors
from kvswap.worker.training import frequent_tokens, worthwhile


@pytest.mark.parametrize(
    ("heads", "dim", "layers", "before"),
    [(3, 64, 30, 4), (8, 128, 36, 1), (4, 128, 28, 1), (1, 64, 4, 4)],
)
def test_wide_models_look_back_less(heads: int, dim: int, layers: int, before: int) -> None:
    assert worthwhile(LayerSpec("full", heads, dim, dim), layers) == before


def test_frequent_tokens_are_those_that_the_corpus_repeats(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("aaab")
    (tmp_path / "b.txt").write_text("bcc aa")
    assert frequent_tokens(lambda text: [ord(c) for c in text], tmp_path, 2) == [ord("a"), ord("b")]
    assert frequent_tokens(lambda text: [ord(c) for c in text], tmp_path, 9) == [ord(c) for c in "abc"]
    assert frequent_tokens(lambda text: [ord(c) for c in text], tmp_path, 0) == []


def test_what_ships_is_whole_and_named_after_its_model() -> None:
    shipped = list(predictors.SHIPPED.iterdir())
    assert shipped
    for path in shipped:
        assert len(bytes.fromhex(path.name)) == 32
        (stack,) = predictive.load(path.read_bytes()).stacks
        assert stack.layers[0] == 0 and len(stack.memory) > 1_000
