"""A model by its name, loaded as its makers' own code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.model import ready


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_and_its_tokenizer_come_in_the_dtype_that_was_asked_for(
    tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    import torch
    from transformers import AutoTokenizer

    asked = []
    monkeypatch.setattr(ready, "pull", lambda name, models: asked.append((name, models)) or tiny_models["llama"])
    model, tokenizer = ready.load_model("tiny", dtype=dtype)
    assert asked == [("tiny", ready.models_directory())]
    assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}
    own = AutoTokenizer.from_pretrained(tiny_models["llama"])
    assert tokenizer("What is it?")["input_ids"] == own("What is it?")["input_ids"]


def test_a_dtype_of_no_model_is_no_dtype(tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ready, "pull", lambda name, models: tiny_models["llama"])
    with pytest.raises(AttributeError):
        ready.load_model("tiny", dtype="float3")
