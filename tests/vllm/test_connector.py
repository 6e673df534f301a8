"""The connector in a real engine, beside a real node, which fetches from another real node.

What a request gets is compared with what the same engine says without any cache: tiny random models in float32,
whose next tokens are not close calls.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact import chain
from kvswap.core.errors import PlanSaysPrefill
from kvswap.core.ids import Cid
from kvswap.store.files import chunk_path
from tests.support import DOCUMENT, Daemon, tiny_model, until
from tests.vllm.running import Engine, Output

BLOCK = 64
PAGE = 32  # vLLM's blocks
EXTRA = {"block_tokens": BLOCK, "min_tokens": BLOCK, "lookup_seconds": 20.0, "force": True}
WORDS = DOCUMENT.read_text()


class Scene:
    """Two nodes, an engine beside the second, and texts of one's own for every test."""

    def __init__(self, root: Path, kind: str) -> None:
        from transformers import AutoTokenizer

        self.model = tiny_model(root / kind, kind, head_dim=32)
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        self._flags = ["--model", str(self.model), "--dtype", "float32"]
        self._env = {"KVSWAP_BLOCK_TOKENS": str(BLOCK), "KVSWAP_ALSO_CODEC": ""}
        self.publisher = Daemon(root / "publisher", self._flags, dict(self._env)).start()
        self.node = Daemon(
            root / "node", [*self._flags, "--bootstrap", self.publisher.address], dict(self._env)
        ).start()
        self.meet()
        self.node.client.trust_add(self.publisher.publisher)
        self.engine = Engine(
            root / "engine.log",
            model=str(self.model),
            dtype="float32",
            max_model_len=2048,
            block_size=PAGE,
            home=str(self.node.home),
            extra=EXTRA,
        )
        self._texts = 0

    def stop(self) -> None:
        self.engine.stop()
        for node in (self.publisher, self.node):
            node.stop()

    def meet(self) -> None:
        until(lambda: self.node.client.status()["peers"] >= 1, what="the nodes to meet")

    def text(self, length: int = 1500) -> str:
        """One that no other test has, nor its beginning."""
        self._texts += 1
        return f"{self._texts * 7919} " + WORDS[self._texts * 1000 :][:length]

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def question(self, text: str = " What does it say?") -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def cold(self, ids: list[int], tokens: int = 8) -> Output:
        """What the engine says to something that nobody has published."""
        (output,) = self.engine.run(ids, tokens=tokens, reset=True)
        assert output.cached == 0
        return output

    def publish(self, text: str) -> dict[str, Any]:
        """On the other node, and until this one has heard of it; nothing is fetched yet."""
        done = self.publisher.client.publish(text)
        identity = bytes.fromhex(self.publisher.client.show(done["artifact"])["model"])
        ids = chain.pack_ids(self.ids(text))

        def heard() -> bool:
            try:  # prefilling costs nothing: it is found, and not worth it
                self.node.client.cached_prefix(
                    ids, model=identity, dtype="float32", block_tokens=BLOCK, curve=(1e-9, 0.0)
                )
            except PlanSaysPrefill:
                return True
            raise AssertionError("it was fetched")

        until(heard, what="the node to hear of it")
        return done

    def chunks(self, artifact: str) -> list[Path]:
        shown = self.node.client.show(artifact)
        directory = Path(shown["chunks_directory"])
        paths = [chunk_path(directory, Cid.parse(c["cid"])) for c in shown["manifest"]["chunks"]]
        return [path for path in paths if path.exists()]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Gemma's layers keep a window of tokens, but for every sixth: vLLM keeps them in groups of their own."""
    made = Scene(tmp_path_factory.mktemp("vllm"), request.param)
    yield made
    made.stop()


def alike(one: Output, other: Output) -> bool:
    """The same tokens, as probable: a wrong cache would show in that long before it shows in the tokens."""
    return one.ids == other.ids and one.scores == pytest.approx(other.scores, abs=2e-4)


def hybrid(scene: Scene) -> bool:
    return "gemma" in scene.model.name


def test_a_published_document_is_loaded_and_gives_the_same_tokens(scene: Scene) -> None:
    text = scene.text()
    prompt = scene.ids(text) + scene.question()
    expected = scene.cold(prompt)
    published = scene.publish(text)
    (output,) = scene.engine.run(prompt, reset=True)
    whole = published["tokens"] // BLOCK * BLOCK if hybrid(scene) else published["tokens"]
    assert output.cached == whole and alike(output, expected)
    assert scene.node.client.show(published["artifact"])["artifact"] == published["artifact"]
    (again,) = scene.engine.run(prompt)  # from vLLM's own cache, which keeps whole blocks
    assert again.cached >= whole // PAGE * PAGE and alike(again, expected)
    (local,) = scene.engine.run(prompt, reset=True)  # from the node's store
    assert local.cached == whole and alike(local, expected)


def test_what_nobody_published_is_prefilled(scene: Scene) -> None:
    prompt = scene.ids(scene.text())
    first, second = scene.cold(prompt), scene.engine.run(prompt, reset=True)[0]
    assert second.cached == 0 and alike(second, first)
    short = scene.ids(scene.text(100))
    loads = scene.engine.loads
    assert scene.engine.run(short, reset=True)[0].cached == 0 and scene.engine.loads == loads


def test_a_shared_beginning_is_loaded_and_the_rest_prefilled(scene: Scene) -> None:
    text = scene.text()
    other = scene.ids(text)[: 3 * BLOCK + 10] + scene.ids(scene.text())[1:200]
    expected = scene.cold(other)
    scene.publish(text)
    (output,) = scene.engine.run(other, reset=True)
    assert output.cached == 3 * BLOCK and alike(output, expected)


def test_a_document_that_is_the_whole_prompt_leaves_one_token_to_compute(scene: Scene) -> None:
    text = scene.text()
    prompt = scene.ids(text)
    prompt = prompt[: len(prompt) // BLOCK * BLOCK]
    text = scene.tokenizer.decode(prompt, skip_special_tokens=True)
    prompt = scene.ids(text)
    expected = scene.cold(prompt)
    scene.publish(text)
    (output,) = scene.engine.run(prompt, reset=True)
    assert len(prompt) - 2 * BLOCK <= output.cached < len(prompt) and alike(output, expected)


def test_a_load_beside_what_vllm_has_already(scene: Scene) -> None:
    """Its own cache has the first blocks, the published artifact goes on."""
    text = scene.text()
    prompt = scene.ids(text) + scene.question()
    expected = scene.cold(prompt)
    scene.engine.run(prompt[: 2 * BLOCK + 5], reset=True)
    published = scene.publish(text)
    (output,) = scene.engine.run(prompt)
    assert output.cached >= published["tokens"] // BLOCK * BLOCK and alike(output, expected)


def test_sixteen_requests_on_one_document_are_one_fetch(scene: Scene) -> None:
    text = scene.text()
    prompts = [scene.ids(text) + scene.question(f" Tell me number {n}!") for n in range(16)]
    expected = scene.engine.run(*prompts, reset=True)
    published = scene.publish(text)
    served = scene.publisher.client.status()["bytes_out"]
    loads = scene.engine.loads
    outputs = scene.engine.run(*prompts, reset=True)
    assert all(map(alike, outputs, expected))
    assert all(output.cached >= published["tokens"] // BLOCK * BLOCK for output in outputs)
    assert scene.engine.loads == loads + 1
    assert scene.publisher.client.status()["bytes_out"] - served <= 1.2 * published["wire_bytes"]


def test_a_corrupted_chunk_is_computed_and_fetched_anew(scene: Scene) -> None:
    text = scene.text()
    prompt = scene.ids(text) + scene.question()
    expected = scene.cold(prompt)
    published = scene.publish(text)
    assert scene.engine.run(prompt, reset=True)[0].cached > 0
    victim = scene.chunks(published["artifact"])[-1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (output,) = scene.engine.run(prompt, reset=True)
    assert alike(output, expected) and "does not have its digest" in scene.engine.log
    assert output.cached < published["tokens"] // BLOCK * BLOCK

    def healed() -> bool:
        (output,) = scene.engine.run(prompt, reset=True)
        assert alike(output, expected)
        return output.cached >= published["tokens"] // BLOCK * BLOCK

    until(healed, what="the chunk to be fetched again")


def test_what_was_removed_from_the_node_is_fetched_again(scene: Scene) -> None:
    text = scene.text()
    prompt = scene.ids(text) + scene.question()
    published = scene.publish(text)
    first = scene.engine.run(prompt, reset=True)[0]
    scene.node.client.remove(published["artifact"])
    assert published["artifact"] not in [row["artifact"] for row in scene.node.client.artifacts()]
    again = scene.engine.run(prompt, reset=True)[0]
    assert first.cached == again.cached > 0 and alike(first, again)
    assert scene.node.client.show(published["artifact"])["complete"] or hybrid(scene)


def test_a_node_that_is_killed_in_the_middle_of_a_load_costs_only_the_prefill(scene: Scene) -> None:
    text = scene.text(3000)
    prompt = scene.ids(text) + scene.question()
    expected = scene.cold(prompt)
    scene.publish(text)
    scene.publisher.stop()
    scene.publisher.env["KVSWAP_UPLOAD_BYTES_PER_SECOND"] = "50000"
    scene.publisher.start()
    scene.node.stop()
    scene.node.flags[-1] = scene.publisher.address
    scene.node.start()
    scene.meet()
    scene.engine.ask([prompt], reset=True)

    def under_way() -> bool:
        if any(peer["bytes_in"] for peer in scene.node.client.peers()):
            return True
        if scene.engine.answered:  # on a busy machine the look-up took longer than it may, and nothing was loaded
            scene.engine.answer()
            scene.engine.ask([prompt], reset=True)
        return False

    until(under_way, what="the first chunk to come")
    scene.node.stop(signal.SIGKILL)
    (output,), _ = scene.engine.answer()
    assert alike(output, expected)
    (down,) = scene.engine.run(prompt, reset=True)  # and while it is down
    assert alike(down, expected) and down.cached == 0
    scene.publisher.stop()
    del scene.publisher.env["KVSWAP_UPLOAD_BYTES_PER_SECOND"]
    scene.publisher.start()
    scene.node.flags[-1] = scene.publisher.address
    scene.node.start()
    scene.meet()

    def loaded() -> bool:
        (output,) = scene.engine.run(prompt, reset=True)
        assert alike(output, expected)
        return output.cached > 0

    until(loaded, what="the node to be asked again")


def test_a_slow_node_costs_no_more_than_the_look_up_may(scene: Scene) -> None:
    """It is stopped: it answers nothing, and holds the connection."""
    prompt = scene.ids(scene.text())
    expected = scene.cold(prompt)
    assert scene.node.process is not None
    scene.node.process.send_signal(signal.SIGSTOP)
    try:
        (output,) = scene.engine.run(prompt, reset=True)
    finally:
        scene.node.process.send_signal(signal.SIGCONT)
    assert alike(output, expected) and output.cached == 0


def test_salted_requests_are_served_and_other_requests_do_not_see_it(scene: Scene) -> None:
    text = scene.text()
    prompt = scene.ids(text) + scene.question()
    scene.publish(text)
    first = scene.engine.run(prompt, reset=True, salt="one")[0]
    second = scene.engine.run(prompt, salt="two")[0]
    assert alike(first, second) and first.cached == second.cached > 0
