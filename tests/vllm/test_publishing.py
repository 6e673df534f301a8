"""Publishing from a real engine, and what others do with it: transformers, another engine, a sealed group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kvswap.artifact import chain
from kvswap.client.loading import load_artifact
from kvswap.core.errors import NotFound
from tests.support import DOCUMENT, Daemon, tiny_model, until
from tests.vllm.running import Engine

BLOCK, PAGE = 64, 32
EXTRA = {"block_tokens": BLOCK, "min_tokens": BLOCK, "lookup_seconds": 20.0, "force": True, "publish": "asked"}
MARK = {"kv_transfer_params": {"kvswap": {"publish": True}}}
WORDS = DOCUMENT.read_text()


class Scene:
    """A node with an engine that publishes, and another node with a model process."""

    def __init__(self, root: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.directory = tiny_model(root / "llama", "llama", head_dim=32)
        self.tokenizer = AutoTokenizer.from_pretrained(self.directory)
        self.model = AutoModelForCausalLM.from_pretrained(self.directory, dtype=torch.float32)
        flags = ["--model", str(self.directory), "--dtype", "float32"]
        env = {"KVSWAP_BLOCK_TOKENS": str(BLOCK), "KVSWAP_ALSO_CODEC": ""}
        self.node = Daemon(root / "node", flags, dict(env)).start()
        self.reader = Daemon(root / "reader", [*flags, "--bootstrap", self.node.address], dict(env)).start()
        until(lambda: self.reader.client.status()["peers"] >= 1, what="the nodes to meet")
        self.reader.client.trust_add(self.node.publisher)
        self.engine = self.start(root / "engine.log", str(self.node.home))
        self._texts = 0

    def start(self, log: Path, home: str, **extra: Any) -> Engine:
        return Engine(
            log,
            model=str(self.directory),
            dtype="float32",
            max_model_len=2048,
            block_size=PAGE,
            home=home,
            extra=EXTRA | extra,
        )

    def stop(self) -> None:
        self.engine.stop()
        for node in (self.reader, self.node):
            node.stop()

    def text(self, length: int = 1500) -> str:
        self._texts += 1
        return f"{self._texts * 7919} " + WORDS[self._texts * 1000 :][:length]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def published(self, ids: list[int], node: Daemon | None = None) -> Any:
        """The node's artifact of these ids, once it is there."""
        client = (node or self.node).client
        digest = chain.token_digest(ids).hex()

        def found() -> Any:
            for row in client.ls():
                shown = client.details(row.artifact)
                if shown.manifest["prefix"]["token_digest"] == digest:
                    return shown
            return None

        return until(found, what="the artifact")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("publishing"))
    yield made
    made.stop()


def whole(ids: list[int]) -> list[int]:
    """What vLLM's own prefix cache has of a prompt."""
    return ids[: len(ids) // PAGE * PAGE]


def test_what_a_request_marks_is_published_and_loads_in_transformers(scene: Scene) -> None:
    """From vLLM's blocks to a transformers cache on another node: close to what transformers computes itself."""
    text = scene.text()
    ids = scene.ids(text)
    scene.engine.run(ids, tokens=2, extra=MARK)
    shown = scene.published(whole(ids))
    manifest = shown["manifest"]
    assert manifest["numerics"]["schedule"].startswith("vllm ")
    assert manifest["numerics"]["claim"] == "token-verified"  # measured: the node has the model
    assert manifest["probe"]["tokens"]
    cache, report = scene.reader.client.prefix(text, scene.model, scene.tokenizer, block_tokens=BLOCK)
    assert (report["artifact"], report["fetched_tokens"]) == (shown["artifact"], len(ids) // BLOCK * BLOCK)
    with torch.no_grad():
        own = scene.model(torch.tensor([ids])).past_key_values
    for layer, wanted in zip(cache.layers, own.layers, strict=True):
        for have, right in ((layer.keys, wanted.keys), (layer.values, wanted.values)):
            torch.testing.assert_close(have[:, :, : len(ids)], right, atol=1e-4, rtol=1e-4)


def test_it_is_what_the_engine_itself_goes_on_from(scene: Scene, tmp_path: Path) -> None:
    """Another engine that loads it says to the last bit what this one says from its own prefix cache."""
    ids = scene.ids(scene.text())
    scene.engine.run(ids, tokens=2, extra=MARK)
    scene.published(whole(ids))
    (hit,) = scene.engine.run(ids, tokens=64)
    assert hit.cached >= len(ids) // PAGE * PAGE - PAGE
    other = scene.start(tmp_path / "other.log", str(scene.node.home))
    try:
        (loaded,) = other.run(ids, tokens=64)
        assert other.loads == 1
    finally:
        other.stop()
    assert loaded.ids == hit.ids
    assert loaded.scores == pytest.approx(hit.scores, abs=1e-5)


def test_so_many_tokens_and_no_more(scene: Scene) -> None:
    """The rest of the prompt is not told; a last block may be shorter than the others."""
    ids = scene.ids(scene.text())
    count = 2 * BLOCK + 10
    scene.engine.run(ids, tokens=1, extra={"kv_transfer_params": {"kvswap": {"publish": {"tokens": count}}}})
    shown = scene.published(ids[:count])
    cache = load_artifact(shown, scene.model)
    assert cache.get_seq_length() == count


def test_of_a_prompt_that_vllm_has_in_its_cache_already(scene: Scene) -> None:
    """All of it is copied in the one step that is left to do."""
    ids = scene.ids(scene.text())
    (cold,) = scene.engine.run(ids, tokens=4)
    (hit,) = scene.engine.run(ids, tokens=4, extra=MARK)
    assert hit.cached and hit.ids == cold.ids
    scene.published(whole(ids))


def test_nothing_else_is_published(scene: Scene) -> None:
    """Not what nobody marked, nor what is salted, nor what was loaded, nor again what is there."""
    before = {row["artifact"] for row in scene.node.client.artifacts()}
    plain, salted, wrong = (scene.ids(scene.text()) for _ in range(3))
    scene.engine.run(plain)
    scene.engine.run(salted, extra=MARK, salt="s")
    scene.engine.run(wrong, extra={"kv_transfer_params": {"kvswap": {"publish": {"tokens": 10**6}}}})
    assert "of the prompt" in scene.engine.log
    text = scene.text()
    foreign = scene.reader.client.publish(text)["artifact"]
    scene.node.client.trust_add(scene.reader.publisher)
    longer = scene.ids(text) + scene.ids(WORDS[:900])
    identity = bytes.fromhex(scene.reader.client.show(foreign)["model"])
    until(
        lambda: scene.node.client.cached_prefix(
            chain.pack_ids(longer), model=identity, dtype="float32", block_tokens=BLOCK, force=True
        ),
        what="the node to have it",
    )
    scene.engine.run(longer, extra=MARK)
    assert "kvswap: loaded" in scene.engine.log and foreign in scene.engine.log
    scene.engine.run(longer, extra=MARK)  # from vLLM's own cache now, which began with what was loaded
    last = scene.ids(scene.text())
    scene.engine.run(last, tokens=1, extra=MARK)
    shown = scene.published(whole(last))
    scene.engine.run(last, tokens=1, extra=MARK, reset=True)
    after = {row["artifact"] for row in scene.node.client.artifacts()}
    assert after - before == {shown["artifact"], foreign}


def test_a_group_s_engine_publishes_for_the_group_alone(scene: Scene, tmp_path: Path) -> None:
    """And only there by the policy, which no request has to ask for."""
    scene.node.client.group_new("lab")
    engine = scene.start(tmp_path / "group.log", str(scene.node.home), group="lab", publish="repeated")
    try:
        shared, one, other = scene.ids(scene.text()), scene.ids(scene.text(200)), scene.ids(scene.text(200))
        shared = shared[: len(shared) // BLOCK * BLOCK]
        engine.run(shared + one)
        engine.run(shared + other)
        shown = scene.published(shared)
    finally:
        engine.stop()
    assert shown["group"] == "lab"
    with pytest.raises(NotFound):
        scene.reader.client.show(shown["artifact"])
    identity = bytes.fromhex(scene.node.client.show(shown["artifact"])["model"])
    with pytest.raises(NotFound):
        scene.reader.client.cached_prefix(
            chain.pack_ids(shared), model=identity, dtype="float32", block_tokens=BLOCK, force=True
        )
    scene.reader.client.group_import(scene.node.client.group_export("lab")["key"])
    found = until(
        lambda: scene.reader.client.cached_prefix(
            chain.pack_ids(shared), model=identity, dtype="float32", block_tokens=BLOCK, force=True
        ),
        what="the member to find it",
    )
    assert found["artifact"] == shown["artifact"]


def test_a_node_that_is_down_costs_no_request(scene: Scene, tmp_path: Path) -> None:
    engine = scene.start(tmp_path / "alone.log", str(tmp_path / "nobody"))
    try:
        (output,) = engine.run(scene.ids(scene.text()), extra=MARK)
        assert len(output.ids) == 8
        until(lambda: "not published" in engine.log, what="the engine to say so")
    finally:
        engine.stop()
