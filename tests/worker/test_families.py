"""The matrix of `docs/models.md`: every family of the table, in each dtype and each way, bit for bit and verified.

Its cells are `family x dtype x way`, the latter two from the table that the page is made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kvswap.artifact.tensors import LayerTensors
from kvswap.model.cache import build_cache, held_tensors, layer_specs
from kvswap.model.families import DTYPES, WAYS, page
from kvswap.model.families import FAMILIES as TABLE
from kvswap.model.prefill import greedy, prefill
from tests.families import FAMILIES
from tests.worker.honest import BLOCK, Shelf
from tests.worker.test_hybrid import Feeder

STEPS = 12
TOKENS = 3 * BLOCK + 5
LEVELS = (2, 3, 4, 7)
QUESTION = "\n\nQuestion: what?\nAnswer:"
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
    "mamba2",
)  # one of each; the rest in test-model
EACH = [name if name in KINDS else pytest.param(name, marks=pytest.mark.model) for name in FAMILIES]


COMMON: dict[str, Any] = {
    "job": "answer",
    "question": "What?",
    "steps": STEPS,
    "block_tokens": BLOCK,
    "ignore_eos": True,
}


class Shelves(dict[str, Shelf]):
    """A shelf for each dtype, with the models and artifacts of one family at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of(self, family: str, dtype: str) -> Shelf:
        if (shelf := self.get(f"{family} {dtype}")) is None:
            self.clear()
            shelf = Shelf(self.root, {family: dtype}, noise_tokens=2 * BLOCK, checkpoints=[BLOCK, 2 * BLOCK])
            self[f"{family} {dtype}"] = shelf
        return shelf


@pytest.fixture(scope="module")
def shelves(tmp_path_factory: pytest.TempPathFactory) -> Shelves:
    return Shelves(tmp_path_factory.mktemp("families"))


def copied(held: list[LayerTensors]) -> list[LayerTensors]:
    return [LayerTensors(t.spec, tuple(one.clone() for one in t.tensors), t.first, t.tokens) for t in held]


def whole(shelf: Shelf, family: str, _: Path) -> None:
    """With any one tensor empty the logits are others."""
    made, jobs = shelf.artifact(family, TOKENS), shelf.jobs(family)
    answered(shelf, family, None)
    loaded = jobs.loaded
    ids = loaded.tokenize(made.text)
    question = loaded.tokenize_continuation(QUESTION)
    cache = prefill(loaded, ids, BLOCK)
    held = copied(held_tensors(cache, layer_specs(cache), len(ids)))

    def first(tensors: list[LayerTensors]) -> str:
        # One token alone: what the last layer's convolution holds is of no use to the tokens that come after three.
        built = build_cache(loaded.model.config, tensors, len(ids))
        return greedy(loaded, built, len(ids), question[:1], 1).logits_digest

    right = first(copied(held))
    for place, layer in enumerate(held):
        for number, spec in enumerate(layer.spec.tensors):
            damaged = copied(held)
            torch.Tensor.zero_(damaged[place].tensors[number])
            assert first(damaged) != right, f"{spec.name} of cache layer {place} means nothing"


def answered(shelf: Shelf, family: str, tokens: int | None) -> None:
    """What is said after an artifact, whole or up to `tokens` with the rest prefilled, is said after prefilling."""
    made, jobs = shelf.artifact(family, TOKENS), shelf.jobs(family)
    wanted = jobs.run({**COMMON, "text": made.text})["logits_digest"]
    chunks = str(shelf.chunks.directory)
    got = jobs.run({**COMMON, "text": made.text, "envelope": made.envelope, "chunks": chunks, "tokens": tokens})
    assert got["logits_digest"] == wanted, tokens


def prefix(shelf: Shelf, family: str, _: Path) -> None:
    answered(shelf, family, 2 * BLOCK)


def checkpoints(shelf: Shelf, family: str, _: Path) -> None:
    manifest = shelf.artifact(family, TOKENS).manifest
    held = manifest.layout.checkpoints
    assert bool(held) == manifest.layout.has_states
    for tokens in held or [BLOCK, 2 * BLOCK, 3 * BLOCK]:
        answered(shelf, family, tokens)


def both_at_once(shelf: Shelf, family: str, directory: Path) -> None:
    feeder = Feeder(shelf.directory(family), directory, dtype=shelf.dtype(family))
    text = shelf.artifact(family, TOKENS).text
    feeder.publish(text)
    common = {**COMMON, "block_tokens": feeder.manifest.prefix.block_tokens}
    wanted = feeder.jobs.run({**common, "text": text})
    feeder.available.clear()
    got = feeder.run(**common, text=text)
    assert got["logits_digest"] == wanted["logits_digest"] and got["claim"] == "bitwise"
    assert 0 < len(feeder.available) < len(feeder.units)


def verified(shelf: Shelf, family: str, _: Path) -> None:
    made, chunks = shelf.artifact(family, TOKENS), str(shelf.chunks.directory)
    noise = shelf.noise(family)
    asked = {"levels": list(LEVELS), "samples": 32, "seed": bytes(32), "text": made.text, "noise": noise}
    report = shelf.jobs(family).run({"job": "verify", "envelope": made.envelope, "chunks": chunks, **asked})
    verdicts = {step["level"]: step["verdict"] for step in report["steps"]}
    assert set(verdicts) == set(LEVELS) and "failed" not in verdicts.values(), report["steps"]
    assert verdicts[2] == verdicts[4] == verdicts[7] == "passed", report["steps"]


RUN = dict(zip(WAYS, (whole, prefix, checkpoints, both_at_once, verified), strict=True))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", EACH)
def test_a_cell(shelves: Shelves, tmp_path: Path, family: str, dtype: str, way: str) -> None:
    RUN[way](shelves.of(family, dtype), family, tmp_path)


def test_the_cells_are_those_of_the_page(request: pytest.FixtureRequest) -> None:
    """As many as it says, some types with further variants; conftest.py makes a skipped one a failure."""
    import transformers

    types = {name: getattr(transformers, kind).model_type for name, (kind, _) in FAMILIES.items()}
    marks = {mark.args[0]: mark.args[1] for mark in test_a_cell.pytestmark}  # type: ignore[attr-defined]
    names = [one if isinstance(one, str) else one.values[0] for one in marks["family"]]
    cells = {(types[name], dtype, way) for name in names for dtype in marks["dtype"] for way in marks["way"]}
    wanted = {(f.model_type, dtype, way) for f in TABLE.values() if not f.refused for dtype in DTYPES for way in WAYS}
    assert cells == wanted and f"{len(cells)} cells" in page()
