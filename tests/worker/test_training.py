"""What a predictor is trained on, and how large it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.artifact.specs import LayerSpec
from kvswap.codec import predictive
from kvswap.core.errors import Incompatible
from kvswap.exchange.node import predictors
from kvswap.model.load import LoadedModel, load_model
from kvswap.worker.training import frequent_tokens, texts, train_predictor, worthwhile
from tests.families import build


@pytest.mark.parametrize(
    ("heads", "dim", "layers", "before"),
    [(3, 64, 30, 4), (8, 128, 36, 1), (4, 128, 28, 1), (1, 64, 4, 4)],
)
def test_wide_models_look_back_less(heads: int, dim: int, layers: int, before: int) -> None:
    assert worthwhile(LayerSpec.key_value("full", heads, dim, dim), layers) == before


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


def test_a_model_of_sliding_layers_alone_is_refused_by_name_at_once(
    tmp_path: Path, tiny_models: dict[str, Path]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

    config = MistralConfig(
        num_hidden_layers=2, sliding_window=32, vocab_size=400, hidden_size=32, intermediate_size=32,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, max_position_embeddings=2048,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    loaded = LoadedModel(AutoModelForCausalLM.from_config(config), tokenizer, None, "float32", "cpu")
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("some text of a corpus that is long enough. " * 40)
    prefilled: list[int] = []
    with pytest.raises(Incompatible, match="no layer that attends to all") as caught:
        train_predictor(loaded, tmp_path, 10_000, 64, prefilled.append, lambda: None)
    assert caught.value.exit_code == 7 and caught.value.hint and not prefilled


@pytest.mark.parametrize("family", ["deepseek-v3.2", "mamba2"])
def test_a_model_of_which_nothing_is_predicted_is_refused_too(tmp_path: Path, family: str) -> None:
    """Layers with an index are packed by `planes`, as states are: a predictor would be trained for nothing."""
    loaded = load_model(build(tmp_path / "model", family), family, "float32")
    (tmp_path / "text.txt").write_text("some text of a corpus that is long enough. " * 40)
    with pytest.raises(Incompatible, match="keeps keys and values alone") as caught:
        train_predictor(loaded, tmp_path, 10_000, 64, lambda done: None, lambda: None)
    assert caught.value.exit_code == 7


def test_a_file_of_the_corpus_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.txt").write_text("more")
    gone = [path for path in tmp_path.iterdir() if path.name == "b.txt"]
    found = texts(tmp_path)
    gone[0].chmod(0)
    assert "text" in list(found)
