"""The matrix of `docs/models.md`: every family of the table, in each dtype and each way, bit for bit and verified.

Its cells are `family x dtype x way`, the latter two from the table that the page is made from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kvswap.artifact.layout import fingerprint_rows, in_fingerprint
from kvswap.artifact.tensors import LayerTensors
from kvswap.model.cache import build_cache, held_tensors, layer_specs
from kvswap.model.checking import NO, by_digest, drawn_of, of_digest, sampled
from kvswap.model.families import DTYPES, WAYS, check, text_of
from kvswap.model.families import FAMILIES as TABLE
from kvswap.model.page import page
from kvswap.model.prefill import greedy, prefill
from kvswap.trust.agreement import compare
from kvswap.trust.noise import MARGIN, Noise
from kvswap.worker.first_layer import NO_KEYS
from kvswap.worker.messages import CheckedArtifact, VerifyJob
from tests.attacks.kinds import KindScene, signed
from tests.families import FAMILIES
from tests.worker.honest import BLOCK, Shelf
from tests.worker.test_hybrid import Feeder

STEPS = 12
TOKENS = 3 * BLOCK + 5
LEVELS = (2, 3, 4, 5, 6, 7)
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
            shelf = Shelf(self.root, {family: dtype}, noise_tokens=4 * BLOCK, checkpoints=[BLOCK, 2 * BLOCK])
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


def checked(shelf: Shelf, family: str, envelope: bytes, text: str | None, levels: Sequence[int]) -> CheckedArtifact:
    """What a reader finds; 128 samples are all intervals, and more positions than a lie can miss."""
    job = VerifyJob(
        envelope=envelope,
        chunks=str(shelf.chunks.directory),
        levels=list(levels),
        samples=128,
        seed=bytes(32),
        text=text,
        noise=shelf.noise(family),
    )
    return shelf.jobs(family).do(job)


def verified(shelf: Shelf, family: str, _: Path) -> None:
    """An honest artifact passes every level, as its type's row of the page says; the cache of another text passes none."""
    made, noise, config = shelf.artifact(family, TOKENS), Noise.of(shelf.noise(family)), configuration(shelf, family)
    layers, whole = made.manifest.layout.layers, all(layer.kind == "state" for layer in made.manifest.layout.layers)
    found = checked(shelf, family, made.envelope, made.text, LEVELS)
    steps = {step.level: step for step in found.steps}
    assert set(steps) == set(LEVELS) - {6}
    skipped = {level: step.why for level, step in steps.items() if step.verdict != "passed"}
    assert skipped == ({3: NO_KEYS} if whole else {}), skipped
    slid = any(layer.window is not None and layer.window <= TOKENS for layer in layers)
    if slid or all(layer.window is None for layer in layers):  # else a text of these few tokens has no window yet
        drawn = "intervals" if steps[5].figures.of_intervals is not None else "positions"
        assert drawn == sampled(text_of(config), layers)

    alone = checked(shelf, family, made.envelope, None, [3]).steps[0]
    within = layers[0].window is None or layers[0].window > TOKENS
    assert (alone.verdict == "passed") == (by_digest(text_of(config), layers) != NO and within), alone.why

    scene = KindScene.of(shelf, family, TOKENS)
    lie, chunks = signed(scene, scene.parts(scene.other))
    for cid, data in chunks.items():
        shelf.chunks.write(cid, data)
    lied = checked(shelf, family, lie.envelope, made.text, [level for level in LEVELS if level not in (2, 4)])
    for step in lied.steps:
        own = "this reader's own cache of the same tokens" in step.why  # experts that flip: nobody is accused
        assert step.verdict == "failed" and step.proven or step.level in skipped or own, step
    assert any(step.proven for step in lied.steps)

    if in_fingerprint(made.manifest):
        others = {"honest": found.fingerprint, "another text": lied.fingerprint}
        told = compare(found.computed, others, noise.fingerprints, fingerprint_rows(layers)).scores
        assert told["honest"] <= MARGIN < told["another text"]
    else:  # all layers slide, so that V6 is not done
        assert not any(found.fingerprint)


def configuration(shelf: Shelf, family: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((shelf.directory(family) / "config.json").read_text())
    return held


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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_how_each_type_is_verified(family: str) -> None:
    import transformers

    kind, fields = FAMILIES[family]
    config: dict[str, Any] = getattr(transformers, kind)(**fields).to_dict()
    found, model_type = check(config), config["model_type"]
    assert found.sampled in drawn_of(model_type) and found.by_digest == of_digest(model_type)
