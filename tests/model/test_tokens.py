"""A document's tokens are those of its text: what a tokenizer puts behind it would stand between it and a question."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import Incompatible
from kvswap.model.load import document_ids, load_model, load_tokenizer
from kvswap.worker.jobs import Jobs
from kvswap.worker.messages import PublishJob

TEXTS = ["a", "Some text.", "ends with </s>", "</s></s>", "<s>begins", "  spaces  ", "ä€𝄞\n\n"]
TEMPLATES: dict[str, list[dict[str, Any]]] = {
    "eos": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
    "both": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ],
    "two behind": [
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "<pad>", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ],
    "bos": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "none": [{"Sequence": {"id": "A", "type_id": 0}}],
}
IDS = {"<pad>": 0, "<s>": 1, "</s>": 2}
BEFORE = {"both": [1], "bos": [1]}


@pytest.fixture(params=sorted(TEMPLATES))
def templated(tiny_models: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path]:
    directory = Path(shutil.copytree(tiny_models["llama"], tmp_path / "model"))
    made = json.loads((directory / "tokenizer.json").read_text())
    made["post_processor"] = {
        "type": "TemplateProcessing",
        "single": TEMPLATES[request.param],
        "pair": TEMPLATES[request.param] + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in IDS.items()},
    }
    (directory / "tokenizer.json").write_text(json.dumps(made))
    return request.param, directory


def test_nothing_stands_behind_a_document(templated: tuple[str, Path]) -> None:
    kind, directory = templated
    tokenizer = load_tokenizer(directory)
    for text in TEXTS:
        bare = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert document_ids(tokenizer, text) == BEFORE.get(kind, []) + bare


def test_what_is_published_goes_on(templated: tuple[str, Path]) -> None:
    """The document's tokens and those of what follows are the tokens of both together."""
    _, directory = templated
    jobs = Jobs(lambda _: None, threading.Event())
    jobs._loaded = load_model(directory, "m", "float32")
    ids = jobs.loaded.tokenize("Some text.")
    assert 2 not in ids and jobs.do(
        PublishJob(text="Some text.", block_tokens=32, codec="raw", truncate=False)
    ).prefix.tokens == len(ids)


def test_helpers_of_transformers_use_the_same_tokens(templated: tuple[str, Path]) -> None:
    from kvswap.client.loading import LocalPrefill
    from kvswap.integrations.transformers import inputs_after

    _, directory = templated
    loaded = load_model(directory, "m", "float32")
    cache = LocalPrefill("Some text.", loaded.model, loaded.tokenizer, 32).cache(16)
    made = inputs_after("Some text.", " What?", loaded.tokenizer, cache)["input_ids"][0].tolist()
    assert made == document_ids(loaded.tokenizer, "Some text.") + loaded.tokenize_continuation(" What?")


class Mixing:
    """A tokenizer whose special tokens stand within the text."""

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
        ids = [10 + len(text), 11]
        return {"input_ids": [ids[0], 1, ids[1]] if add_special_tokens else ids}


def test_special_tokens_within_a_text_are_refused() -> None:
    with pytest.raises(Incompatible, match="Mixing"):
        document_ids(Mixing(), "text")
