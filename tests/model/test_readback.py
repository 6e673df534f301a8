"""Tokens from layer 0: which part of it tells them is the model's to show, and twins are not guessed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from kvswap.artifact.chain import token_digest
from kvswap.core.errors import Incompatible
from kvswap.model.load import load_model
from kvswap.model.readback import read_document, read_ids, readable
from tests.attacks.kit import computed
from tests.families import build
from tests.support import DOCUMENT

TEXT = DOCUMENT.read_text()[:400]


@pytest.mark.parametrize(
    ("family", "part"),
    [("llama", "v"), ("gemma3-80", "v"), ("falcon-alibi", "v"), ("deepseek-v3", "k"), ("minicpm3", "k")]
    + [("gpt2", None), ("opt", None), ("gpt-bigcode", None)],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_shows_what_tells_its_tokens(tmp_path: Path, family: str, part: str | None, dtype: str) -> None:
    loaded = load_model(build(tmp_path / family, family), family, dtype)
    assert readable(loaded) == part
    ids = loaded.tokenize(TEXT)
    sha256 = hashlib.sha256(TEXT.encode()).digest()
    held = computed(loaded, ids, 64)[0]
    if part is None:
        with pytest.raises(Incompatible, match="cannot be read back"):
            read_document(loaded, held, token_digest(ids), sha256)
    elif not held.first:
        assert read_document(loaded, held, token_digest(ids), sha256) == ids


def test_tokens_that_are_alike_are_not_told_apart(tiny_models: dict[str, Path]) -> None:
    """As the rows of an embedding that were never trained: nobody is accused for the reader's guess."""
    loaded = load_model(tiny_models["llama"], "llama", "float32")
    ids = loaded.tokenize(TEXT)
    twin = next(i for i in range(399, 0, -1) if i not in ids)
    with torch.no_grad():
        rows = loaded.model.get_input_embeddings().weight
        for token in (ids[5], ids[9]):
            rows[twin if token == ids[5] else twin - 1] = rows[token]
    held = computed(loaded, ids, 64)[0]
    assert not read_ids(loaded, held, "v").certain
    other = [twin if i == ids[5] else i for i in ids]
    with pytest.raises(Incompatible, match="several fit"):
        read_document(loaded, held, token_digest(other), bytes(32))
