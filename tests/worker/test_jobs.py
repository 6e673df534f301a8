"""The model process's jobs, in process: bounded, cancellable, exact."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact import consistency, dsse
from kvswap.core.errors import Incompatible, Interrupted, InvalidDocument, NotFound, UsageError, WorkerFailed
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.store.files import chunk_path
from kvswap.worker.jobs import Jobs
from tests.support import DOCUMENT, publish_ids, until

TEXT = DOCUMENT.read_text()[:3000]


def jobs(model: Path, send: Any = lambda message: None, dtype: str = "float32") -> Jobs:
    made = Jobs(send, threading.Event())
    made.run({"job": "open", "directory": str(model), "label": "m", "dtype": dtype, "device": "cpu", "threads": 0})
    return made


def test_publishing_keeps_a_bounded_number_of_blocks(tiny_models: dict[str, Path]) -> None:
    """With a store that takes nothing, prefill stops instead of piling up encoded blocks."""
    release, done = threading.Event(), threading.Event()
    seen: list[str] = []

    def send(message: dict[str, Any]) -> None:
        seen.append(message["event"])
        if message["event"] == "chunk":
            release.wait(600)

    made = jobs(tiny_models["llama"], send)

    def publish() -> None:
        made.run({"job": "publish", "text": TEXT, "block_tokens": 32, "codec": "planes", "truncate": False})
        done.set()

    thread = threading.Thread(target=publish)
    thread.start()
    until(lambda: seen.count("prefill") >= LIMITS.blocks_in_flight, what="the prefill to run ahead")
    assert not done.wait(0.5)  # it is held up, and stays so
    assert seen.count("prefill") == LIMITS.blocks_in_flight
    release.set()
    thread.join(600)
    assert done.is_set()
    assert seen.count("chunk") >= seen.count("prefill") > 2 * LIMITS.blocks_in_flight


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_predictor_is_trained_and_publishing_with_it_is_exact(
    tiny_models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    from kvswap.codec import predictive

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    text = DOCUMENT.read_text()
    for number in range(3):
        (corpus / f"{number}.txt").write_text(text[3000 + 2000 * number : 5000 + 2000 * number])
    (corpus / "binary").write_bytes(bytes(5000))
    seen: list[dict[str, Any]] = []
    made = jobs(tiny_models[kind], seen.append)
    result = made.run({"job": "train", "corpus": str(corpus), "tokens": 100_000, "block_tokens": 32})
    assert result["tokens"] > 300
    (data,) = (m["data"] for m in seen if m["event"] == "predictor")
    predictor = predictive.load(data)
    assert predictor.stacks
    cid = Cid.of(data)
    chunk_path(tmp_path, cid).parent.mkdir()
    chunk_path(tmp_path, cid).write_bytes(data)

    def publish(**options: Any) -> dict[str, Any]:
        seen.clear()
        return made.run({"job": "publish", "text": TEXT, "block_tokens": 32, "truncate": False, **options})

    publish(codec="planes")
    raw = [m["ref"]["raw"] for m in seen if m["event"] == "chunk"]
    publish(codec="predictive", predictor=str(cid), chunks=str(tmp_path))
    refs = [m["ref"] for m in seen if m["event"] == "chunk"]
    assert [r["raw"] for r in refs] == raw  # of the same tensors
    assert "predictive2" in {r["codec"] for r in refs}


def test_an_inexact_artifact_says_what_it_does_to_the_answers(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from kvswap.artifact.manifest import Manifest
    from tests.support import key, manifest_of

    seen: list[dict[str, Any]] = []
    made = jobs(tiny_models["gemma3"], seen.append)

    def take(result: dict[str, Any], fields: dict[str, Any]) -> Manifest:
        for message in (m for m in seen if m["event"] == "chunk"):
            path = chunk_path(tmp_path, Cid.of(message["data"]))
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(message["data"])
        refs = sorted((m["ref"] for m in seen if m["event"] == "chunk"), key=lambda r: (r["block"], r["run"]))
        seen.clear()
        now = int(time.time())
        fields |= {k: v for k, v in result.items() if k in ("probe", "tensors", "divergence")} | {"chunks": refs}
        life = {"issued": now, "expires": now + 1000, "sequence": 1, "supersedes": None}
        return manifest_of(fields | {"life": life, "publisher": str(key().peer_id)})

    def sealed(manifest: Manifest) -> bytes:
        return dsse.seal(manifest.encode(), manifest.publisher, key().sign)

    result = made.run({"job": "publish", "text": TEXT, "block_tokens": 32, "codec": "planes", "truncate": False})
    names = ("model", "prefix", "layout", "numerics", "tensors", "probe")
    lossless = take(result, {name: result[name] for name in names} | {"extensions": []})
    for codec in ("int8", "int8-channel"):
        told = made.run({"job": "recode", "envelope": sealed(lossless), "codec": codec, "chunks": str(tmp_path)})
        fields = {name: result[name] for name in names} | {"extensions": []}
        lossy = take(told, fields)
        assert lossy.codecs == [codec] and lossy.divergence is not None
        assert lossy.divergence.steps == 32 and lossy.divergence.equal <= 32 and lossy.divergence.kl >= 0
        assert lossy.tensors != lossless.tensors
        # Its own digests and its own probe hold, as those of an exact one do.
        ask = {
            "job": "verify",
            "envelope": sealed(lossy),
            "chunks": str(tmp_path),
            "samples": 8,
            "seed": bytes(32),
        }
        report = made.run({**ask, "levels": [2, 3, 4, 5, 7], "text": TEXT})
        steps = {step["level"]: step for step in report["steps"]}
        assert steps[2]["verdict"] == steps[4]["verdict"] == "passed" and steps[4]["figures"]["logits_equal"]
        # It says itself that it is not the model's own: nothing to be found out by computing again.
        assert {steps[n]["verdict"] for n in (3, 5, 7)} == {"skipped"}
    plain = made.run({"job": "recode", "envelope": sealed(lossless), "codec": "raw", "chunks": str(tmp_path)})
    assert plain == {"divergence": None, "probe": None, "tensors": None}
    assert [m["ref"]["raw"] for m in seen if m["event"] == "chunk"] == [c.raw for c in lossless.chunks]


def test_a_corpus_without_text_is_refused(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    made = jobs(tiny_models["llama"])
    for corpus in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError):
            made.run({"job": "train", "corpus": str(corpus), "tokens": 1000, "block_tokens": 32})


def test_a_cancelled_job_stops_at_the_next_block(tiny_models: dict[str, Path]) -> None:
    seen: list[str] = []

    def send(message: dict[str, Any]) -> None:
        seen.append(message["event"])
        made._cancelled.set()

    made = Jobs(send, threading.Event())
    made._loaded = jobs(tiny_models["llama"])._loaded
    for request in (
        {"job": "publish", "text": TEXT, "block_tokens": 32, "codec": "planes", "truncate": False},
        {"job": "answer", "text": TEXT, "question": "What?", "steps": 100, "block_tokens": 32},
    ):
        made._cancelled.clear()
        seen.clear()
        with pytest.raises(Interrupted):
            made.run(request)
        assert seen.count("prefill") <= 2


def test_answers_from_a_partial_artifact_equal_those_of_a_whole_prefill(
    tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    from kvswap.store.files import ChunkFiles

    made = jobs(tiny_models["gemma3"])
    loaded = made.loaded
    ids = loaded.tokenize(TEXT)[: 32 * 8]
    published = publish_ids(loaded, ids, 32)
    fields = {n: getattr(published.manifest, n) for n in published.manifest.__struct_fields__}
    fields["model"] = loaded.identity
    manifest = type(published.manifest)(**fields)
    consistency.check(manifest)
    from tests.support import key

    envelope = dsse.seal(manifest.encode(), manifest.publisher, key().sign)
    files = ChunkFiles(tmp_path)
    for cid, data in published.chunks.items():
        files.write(cid, data)
    common: dict[str, Any] = {"job": "answer", "question": "What?", "steps": 12, "block_tokens": 32, "ignore_eos": True}
    whole = made.run({**common, "text": TEXT})
    for tokens in (32, 128, 256):
        got = made.run({**common, "text": TEXT, "envelope": envelope, "chunks": str(files.directory), "tokens": tokens})
        assert got["token_ids"] == whole["token_ids"] and got["logits_digest"] == whole["logits_digest"]
    victim = list(published.chunks)[-1]  # of the last block, which every reader needs
    files.remove(victim)
    with pytest.raises(NotFound, match=str(victim)):
        made.run({**common, "envelope": envelope, "chunks": str(files.directory)})
    other = jobs(tiny_models["llama"])
    with pytest.raises(Incompatible):
        other.run({**common, "envelope": envelope, "chunks": str(files.directory)})


def test_bad_jobs_are_clear_errors(tiny_models: dict[str, Path]) -> None:
    with pytest.raises(WorkerFailed):
        Jobs(lambda m: None, threading.Event()).run({"job": "tokenize", "text": "x", "block_tokens": 4})
    made = jobs(tiny_models["llama"])
    with pytest.raises(UsageError):
        made.run({"job": "do_open"})
    with pytest.raises(Incompatible):
        made.run({"job": "publish", "text": TEXT, "block_tokens": 32, "codec": "pickle", "truncate": False})
    with pytest.raises(InvalidDocument):
        made.run(
            {"job": "publish", "text": DOCUMENT.read_text(), "block_tokens": 32, "codec": "raw", "truncate": False}
        )
    samples = made.run({"job": "calibrate", "block_tokens": 32})["samples"]
    assert [s[:2] for s in samples] == [(0, 32), (32, 32), (64, 32)] and all(s[2] > 0 for s in samples)
