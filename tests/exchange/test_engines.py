"""What an engine computed is compared before it is signed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.artifact.manifest import EngineProbe
from kvswap.core.errors import Incompatible, UsageError
from kvswap.exchange.publish_computed import Computed, publish_computed
from kvswap.model.load import load_model
from kvswap.trust import read_statement
from kvswap.worker.conversation import ChunkEvent
from kvswap.worker.messages import EngineComputed
from tests.attacks.kit import Scene, forge
from tests.exchange.modelled import RealModel
from tests.exchange.test_fetch import world
from tests.support import DOCUMENT, make_artifact, run, tiny_model

TEXT = DOCUMENT.read_text()[:700]


@pytest.fixture(scope="module")
def scene(tiny_models: dict[str, Path]) -> Scene:
    loaded = load_model(tiny_models["llama"], "tiny", "float32")
    return Scene(loaded, TEXT, loaded.tokenize(TEXT), [], 64)


@pytest.mark.parametrize("weights", ["the model's", "others"])
def test_an_engine_with_other_weights_than_it_says_gets_nothing_signed(
    tmp_path: Path, tiny_models: dict[str, Path], scene: Scene, weights: str
) -> None:
    tensors = scene.right
    if weights == "others":
        tensors = scene.compute(scene.ids, load_model(tiny_model(tmp_path / "other", "llama", 7), "other", "float32"))
    made = forge(scene, tensors)
    numerics = msgspec.structs.replace(scene.loaded.numerics(), claim="tolerance")
    computed = Computed(scene.loaded.identity, "float32", tuple(scene.ids), 64, numerics)

    async def sent(on_event: Any) -> EngineComputed:
        for ref in made.manifest.chunks:
            await on_event(ChunkEvent(ref=ref, data=made.chunks[ref.id], us=1))
        return EngineComputed(layout=made.manifest.layout, tensors=made.manifest.tensors)

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False, model=RealModel(tiny_models["llama"]), block_tokens=64)
            if weights == "others":
                with pytest.raises(Incompatible, match="does not continue as the model does"):
                    await publish_computed(node, computed, sent)
                assert node.store.artifacts() == []
            else:
                done = await publish_computed(node, computed, sent)
                assert done["claim"] == "token-verified" and done["compared"]["kl"] == 0

    run(body())


def test_an_engine_that_says_by_a_probe_how_it_computes_may_claim_bits(tmp_path: Path) -> None:
    made = make_artifact()
    manifest = made.manifest
    probe = EngineProbe("llama.cpp", "b1", bytes(32), bytes(64))
    numerics = msgspec.structs.replace(manifest.numerics, claim="bitwise")
    ids = tuple(range(manifest.prefix.tokens))
    with_probe = Computed(
        manifest.model,
        manifest.layout.dtype,
        ids,
        manifest.prefix.block_tokens,
        numerics,
        compare=False,
        document=manifest.document,
        engine=probe,
    )

    async def sent(on_event: Any) -> EngineComputed:
        for ref in manifest.chunks:
            await on_event(ChunkEvent(ref=ref, data=made.chunks[ref.id], us=1))
        return EngineComputed(layout=manifest.layout, tensors=manifest.tensors)

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node(trust=False)
            with pytest.raises(UsageError, match="bitwise"):
                await publish_computed(node, replace(with_probe, engine=None), sent)
            done = await publish_computed(node, with_probe, sent)
            assert done.claim == "bitwise" and not done.reused
            signed = read_statement(node.store.envelope(done.artifact) or b"").manifest
            assert signed.engine == probe and signed.extensions == ["engine"]
            assert signed.document == manifest.document
            assert (await publish_computed(node, with_probe, sent)).reused

    run(body())
