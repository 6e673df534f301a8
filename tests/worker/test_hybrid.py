"""A cache filled from both ends, in the model process's own jobs: whatever comes, the bits are a whole prefill's."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.artifact import chain, consistency, dsse, layout
from kvswap.artifact.manifest import Manifest, layout_of, version_of
from kvswap.artifact.specs import LayerGroup, LayerSpec
from kvswap.core.errors import Incompatible, IntegrityError, Interrupted, PeerError
from kvswap.core.limits import LIMITS
from kvswap.store.files import ChunkFiles
from kvswap.worker.conversation import ArrivalNotice, EndNotice
from kvswap.worker.inbox import Inbox
from kvswap.worker.jobs import Jobs
from tests.support import DOCUMENT, Ingested, key, publish_ids

TEXT = DOCUMENT.read_text()[:2500]
BLOCK = 32
SLOW = 2_000_000  # microseconds that a unit is said to take to compute
COMMON: dict[str, Any] = {
    "job": "answer",
    "question": "What?",
    "steps": 12,
    "block_tokens": BLOCK,
    "ignore_eos": True,
    "text": TEXT,
}


_answers: dict[tuple[bytes, str], dict[str, Any]] = {}
_artifacts: dict[tuple[Any, ...], Ingested] = {}


def published(loaded: Any, ids: list[int]) -> Ingested:
    """An artifact of these ids, made once for a model and a size of chunks."""
    made = loaded.identity.digest, loaded.dtype, tuple(ids), layout.LIMITS.chunk_target_bytes
    if made not in _artifacts:
        _artifacts[made] = publish_ids(loaded, ids, BLOCK)
    return _artifacts[made]


class Feeder:
    """A job whose artifact arrives, unit by unit from the end, as often as it computes one."""

    def __init__(
        self, model: Path, directory: Path, per_claim: int = 1, units: int | None = None, dtype: str = "float32"
    ) -> None:
        self.told = Inbox()
        self.jobs = Jobs(self._hear, threading.Event(), self.told)
        opened = {"directory": str(model), "label": "m", "dtype": dtype, "device": "cpu", "threads": 0}
        self.jobs.run({"job": "open", **opened})
        self.files = ChunkFiles(directory)
        self.per_claim, self.limit = per_claim, units
        self.available: list[int] = []
        self.cancel_at: int | None = None

    def publish(self, text: str = TEXT, **fields: Any) -> None:
        loaded = self.jobs.loaded
        ids = loaded.tokenize(text)
        made = published(loaded, ids)
        prefix = msgspec.structs.replace(
            made.manifest.prefix,
            token_digest=chain.token_digest(ids),
            chain=chain.chain_digests(loaded.identity.digest, ids, BLOCK),
        )
        own = {n: getattr(made.manifest, n) for n in made.manifest.__struct_fields__}
        fields = own | {"prefix": prefix, "numerics": loaded.numerics()} | fields
        self.manifest = Manifest(**(fields | {"model": loaded.identity}))
        consistency.check(self.manifest)
        self.chunks = dict(made.chunks)
        self.envelope = dsse.seal(self.manifest.encode(), self.manifest.publisher, key().sign)
        self.units = layout.work_units(self.manifest)
        self.left = list(reversed(range(len(self.units))))[: self.limit]

    def deliver(self, count: int = 1) -> None:
        for _ in range(count):
            if not self.left:
                self.told.put(EndNotice(why="that was all"))
                return
            unit = self.left.pop(0)
            for index in self.units[unit].chunks:
                cid = self.manifest.chunks[index].id
                self.files.write(cid, self.chunks[cid])
            self.told.put(ArrivalNotice(unit=unit))

    def _hear(self, message: dict[str, Any]) -> None:
        if message["event"] == "claim":
            self.available.append(message["unit"])
            if self.cancel_at == len(self.available):
                self.jobs._cancelled.set()
            self.deliver(self.per_claim)

    def work(self, **changes: Any) -> dict[str, Any]:
        lengths = [sum(self.manifest.chunks[i].length for i in unit.chunks) for unit in self.units]
        count = len(self.units)
        plain = {"compute": [SLOW] * count, "wire": lengths, "load": [0] * count, "rate": 1, "computes": True}
        return plain | changes

    def run(self, **changes: Any) -> dict[str, Any]:
        request = {**COMMON, "envelope": self.envelope, "chunks": str(self.files.directory), "work": self.work()}
        return self.jobs.run(request | changes)

    def whole(self) -> dict[str, Any]:
        """What is answered after all is prefilled; computed once for a model."""
        model = self.jobs.loaded.identity.digest, self.jobs.loaded.dtype
        if model not in _answers:
            _answers[model] = self.jobs.run(dict(COMMON))
        return _answers[model]


@pytest.fixture
def by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one layer each, as large models have them."""
    monkeypatch.setattr(layout, "LIMITS", dataclasses.replace(LIMITS, chunk_target_bytes=1))


def as_wide(layer: LayerSpec) -> LayerSpec:
    """The same bytes, cut into twice the heads of half the width."""
    return LayerSpec.key_value(layer.kind, 2 * layer.heads, layer.k_dim // 2, layer.v_dim // 2, layer.window)


def renamed(layer: LayerSpec) -> LayerSpec:
    k, v = layer.tensors
    return msgspec.structs.replace(layer, tensors=(msgspec.structs.replace(k, name="keys"), v))


def reordered(layer: LayerSpec) -> LayerSpec:
    return msgspec.structs.replace(layer, tensors=layer.tensors[::-1])


def latent(layer: LayerSpec) -> LayerSpec:
    return msgspec.structs.replace(layer, kind="latent")


@pytest.mark.parametrize("change", [as_wide, renamed, reordered, latent])
@pytest.mark.parametrize("text", [TEXT, None], ids=["with the text", "without"])
def test_layers_that_are_not_the_models_are_refused_before_they_are_loaded(
    tiny_models: dict[str, Path], tmp_path: Path, change: Any, text: str | None
) -> None:
    """Also of a publisher who is trusted: the chunks would fit, and the model would compute with something else."""
    feeder = Feeder(tiny_models["llama"], tmp_path)
    feeder.publish()
    made = feeder.manifest.layout
    specs = [change(layer) for layer in made.layers]
    groups = [LayerGroup(g.layers, tuple(t.name for t in specs[g.layers[0]].tensors)) for g in made.groups]
    shape = layout_of(made.dtype, made.rope, specs, groups)
    feeder.publish(layout=shape, version=version_of(shape))
    feeder.deliver(len(feeder.left))
    with pytest.raises(Incompatible, match="its layers are not the model's"):
        feeder.run(text=text)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "gemma3-wide"])
@pytest.mark.parametrize("units", [0, 1, 5, None])
def test_a_link_that_dies_at_each_stage(
    tiny_models: dict[str, Path], tmp_path: Path, by_layer: None, kind: str, units: int | None
) -> None:
    feeder = Feeder(tiny_models[kind], tmp_path, units=units)
    feeder.publish()
    whole = feeder.whole()
    feeder.available.clear()
    got = feeder.run()
    assert got["token_ids"] == whole["token_ids"] and got["logits_digest"] == whole["logits_digest"]
    assert got["claim"] == "bitwise"
    count = len(feeder.units)
    arrived = count if units is None else units
    assert feeder.available == list(range(len(feeder.available)))
    assert count - arrived <= len(feeder.available) <= count
    if units is None:
        assert len(feeder.available) <= -(-count // 2) + 1
    # Sliding layers keep the end of the window of where they are: their blocks are computed whole.
    assert (kind == "llama") == (len(feeder.units) > layout.block_count(feeder.manifest.prefix.tokens, BLOCK))


def test_everything_there_is_loading_and_nothing_is_prefilling(
    tiny_models: dict[str, Path], tmp_path: Path, by_layer: None
) -> None:
    feeder = Feeder(tiny_models["llama"], tmp_path, per_claim=0)
    feeder.publish()
    whole = feeder.whole()
    feeder.available.clear()
    feeder.told.put(EndNotice(why="nobody has it"))
    nothing = feeder.run(work=feeder.work(rate=0))
    assert nothing["logits_digest"] == whole["logits_digest"] and nothing["computed"] == whole["tokens"]
    assert len(nothing["samples"]) == layout.block_count(whole["tokens"], BLOCK)
    feeder.deliver(len(feeder.units))
    feeder.available.clear()
    everything = feeder.run(work=None)
    assert everything["logits_digest"] == whole["logits_digest"]
    assert everything["computed"] == 0 and not feeder.available


def test_a_beginning_in_the_store_is_not_computed(tiny_models: dict[str, Path], tmp_path: Path, by_layer: None) -> None:
    feeder = Feeder(tiny_models["llama"], tmp_path, per_claim=2)
    feeder.publish()
    whole = feeder.whole()
    feeder.available.clear()
    here = 7  # units: two blocks of three layers, and a part of the third, which is computed again
    for unit in feeder.units[:here]:
        for index in unit.chunks:
            cid = feeder.manifest.chunks[index].id
            feeder.files.write(cid, feeder.chunks[cid])
    work = feeder.work()
    got = feeder.run(work=work | {"wire": [0] * here + work["wire"][here:]})
    assert got["logits_digest"] == whole["logits_digest"]
    assert feeder.available[0] == 6
    assert got["computed"] <= whole["tokens"] - 2 * BLOCK


def test_the_first_tokens_of_a_longer_text(tiny_models: dict[str, Path], tmp_path: Path, by_layer: None) -> None:
    feeder = Feeder(tiny_models["llama"], tmp_path)
    feeder.publish()
    whole = feeder.whole()
    feeder.available.clear()
    tokens = 4 * BLOCK
    feeder.units = layout.work_units(feeder.manifest, tokens)
    feeder.left = list(reversed(range(len(feeder.units))))
    got = feeder.run(tokens=tokens, work=feeder.work())
    assert got["logits_digest"] == whole["logits_digest"] and got["tokens"] == whole["tokens"]
    assert tokens < got["tokens"] and max(feeder.available) < len(feeder.units)


def test_without_the_text_nothing_is_computed(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    feeder = Feeder(tiny_models["llama"], tmp_path)
    feeder.publish()
    feeder.deliver(2)
    feeder.told.put(EndNotice(why="the peer is gone"))
    with pytest.raises(PeerError):
        feeder.run(text=None)
    assert not feeder.available


def test_a_text_that_is_not_the_artifacts_is_not_mixed_with_it(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Whatever the artifact says of its document: what is computed has its tokens, or is not computed."""
    feeder = Feeder(tiny_models["llama"], tmp_path)
    feeder.publish(TEXT[:400] + "Something else. " + TEXT[400:])
    feeder.told.put(EndNotice(why="the peer is gone"))
    with pytest.raises(PeerError):
        feeder.run()
    assert not feeder.available


def test_a_chunk_that_is_not_what_was_signed_is_an_error(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    feeder = Feeder(tiny_models["llama"], tmp_path)
    feeder.publish()
    last = feeder.manifest.chunks[-1].id
    feeder.chunks[last] = feeder.chunks[last][:-1] + bytes([feeder.chunks[last][-1] ^ 1])
    with pytest.raises(IntegrityError, match=str(last)):
        feeder.run()


def test_it_can_be_cancelled_at_any_unit(tiny_models: dict[str, Path], tmp_path: Path, by_layer: None) -> None:
    feeder = Feeder(tiny_models["llama"], tmp_path, per_claim=0)
    feeder.publish()
    feeder.cancel_at = 5
    with pytest.raises(Interrupted):
        feeder.run()
    assert len(feeder.available) == 5


def test_another_class_of_machine_is_said_and_probed(
    tiny_models: dict[str, Path], tmp_path: Path, by_layer: None
) -> None:
    feeder = Feeder(tiny_models["llama"], tmp_path)
    feeder.publish()
    elsewhere = msgspec.structs.replace(feeder.manifest.numerics, isa="another")
    probe = true_probe(feeder)
    feeder.publish(numerics=elsewhere, probe=probe)
    assert feeder.run()["claim"] == "token-verified"
    wrong = msgspec.structs.replace(probe, tokens=[t + 1 for t in probe.tokens])
    feeder.publish(numerics=elsewhere, probe=wrong)
    feeder.files = ChunkFiles(tmp_path / "again")
    got = feeder.run(chunks=str(feeder.files.directory))
    assert got["claim"] == "tolerance"
    assert got["logits_digest"] == feeder.whole()["logits_digest"]  # the probe left nothing behind


def true_probe(feeder: Feeder) -> Any:
    from kvswap.model.prefill import greedy, prefill

    loaded = feeder.jobs.loaded
    ids = loaded.tokenize(TEXT)
    question = loaded.tokenize_continuation("In summary,")
    made = greedy(loaded, prefill(loaded, ids, BLOCK, headroom=32), len(ids), question, 4)
    return msgspec.structs.replace(feeder.manifest.probe, question=question, tokens=made.ids)
