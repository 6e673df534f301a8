"""The main job with real libp2p between real processes: published there, continued from here, bit for bit."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import DOCUMENT, Daemon, kvswap, last_json, until

pytestmark = [pytest.mark.swarm]
Start = Callable[..., Daemon]


def ask(node: Daemon, ref: str, *flags: str, steps: int = 256) -> dict[str, Any]:
    done = kvswap(
        node.home, "ask", ref, "What is this about?", "--max-tokens", str(steps), "--ignore-eos", "--json", *flags
    )
    assert done.returncode == 0, done.stderr
    return last_json(done)


def digest_of(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def pair(daemon: Start, *flags: str, **env: str) -> tuple[Daemon, Daemon]:
    a = daemon("a", *flags, **env)
    b = daemon("b", "--bootstrap", a.address, *flags, **env)
    assert kvswap(b.home, "trust", "add", a.publisher).returncode in (0, 2)
    b.client.trust_add(a.publisher)
    until(lambda: b.client.status()["peers"], what="B to meet A")
    return a, b


def check_main_job(a: Daemon, b: Daemon, document: Path, steps: int) -> None:
    published = last_json(done := kvswap(a.home, "publish", str(document), "--json"))
    assert done.returncode == 0, done.stderr
    assert set(published) >= {"artifact", "document", "model", "tokens", "raw_bytes", "wire_bytes", "seconds"}
    assert published["document"] == digest_of(document)
    done = kvswap(b.home, "fetch", digest_of(document), "--force", "--json")
    assert done.returncode == 0, done.stderr
    fetched = last_json(done)
    assert set(fetched) >= {"artifact", "plan", "tokens", "wire_bytes", "from", "seconds", "verified"}
    assert set(fetched["plan"]) >= {"action", "seconds", "dollars", "reason"}
    assert fetched["artifact"] == published["artifact"] and fetched["verified"] is True
    assert fetched["from"] == [a.ready["peer"]]
    for line in done.stdout.splitlines():
        json.loads(line)  # under --json every line of stdout is JSON
    loaded = ask(b, digest_of(document), steps=steps)
    prefilled = ask(b, str(document), "--prefill", steps=steps)
    assert set(loaded) >= {"text", "token_ids", "plan", "ttft_seconds", "logits_digest"}
    assert loaded["artifact"] == published["artifact"] and prefilled["artifact"] is None
    assert len(loaded["token_ids"]) == steps
    assert loaded["token_ids"] == prefilled["token_ids"]
    assert loaded["logits_digest"] == prefilled["logits_digest"]
    other = ask(a, str(document), "--prefill", steps=steps)  # the publisher's own machine agrees
    assert other["logits_digest"] == loaded["logits_digest"]
    report = last_json(kvswap(b.home, "verify", published["artifact"], "--json"))
    assert report["verified"] and report["probe"] and report["probe_bitwise"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_default_model_256_steps(daemon: Start, smollm: Path, tmp_path: Path, dtype: str) -> None:
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT.read_text()[:2500])
    # In one codec: a second one would be made in the background, and a reader takes whichever is there.
    a, b = pair(daemon, "--model", "smollm2-135m", "--dtype", dtype, KVSWAP_ALSO_CODEC="")
    check_main_job(a, b, document, 256)


def of_each(short: tuple[str, ...], *others: tuple[str, ...]) -> list[Any]:
    """One kind for 32 steps, and every kind for 256; the long ones stand with those of the default model."""
    return [(*short, 32), *(pytest.param(*kind, 256, marks=pytest.mark.model) for kind in (short, *others))]


@pytest.mark.parametrize("kind,steps", of_each(("gemma3",), ("qwen3",), ("gemma3-wide",)))
def test_other_architectures(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path, kind: str, steps: int
) -> None:
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT.read_text()[:1500])
    a, b = pair(daemon, "--model", str(tiny_models[kind]), "--dtype", "bfloat16", KVSWAP_BLOCK_TOKENS="64")
    check_main_job(a, b, document, steps)


@pytest.mark.parametrize("kind,block,steps", of_each(("gemma3", "32"), ("qwen3", "64")))
def test_predictive_artifacts(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path, kind: str, block: str, steps: int
) -> None:
    """Trained on one node, published with its predictor, fetched and continued from on another."""
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT.read_text()[:1500])
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(2):
        (corpus / f"{number}.txt").write_text(DOCUMENT.read_text()[2000 + 1500 * number : 3500 + 1500 * number])
    flags = ("--model", str(tiny_models[kind]), "--dtype", "bfloat16")
    a, b = pair(daemon, *flags, KVSWAP_BLOCK_TOKENS=block, KVSWAP_CODEC="predictive")
    refused = kvswap(a.home, "publish", str(document))
    assert refused.returncode == 2 and "codec train" in refused.stderr
    trained = kvswap(a.home, "codec", "train", "--corpus", str(corpus), "--tokens", "1000", "--json")
    assert trained.returncode == 0, trained.stderr
    check_main_job(a, b, document, steps)
    shown = a.client.show(digest_of(document))["manifest"]
    assert shown["predictor"]["cid"] == last_json(trained)["predictor"]
    assert "predictive2" in {c["codec"] for c in shown["chunks"]}
    again = last_json(kvswap(a.home, "publish", str(document), "--json"))
    assert again["reused"]
    assert kvswap(b.home, "gc").returncode == 0  # the predictor belongs to the artifact, and stays with it
    assert kvswap(b.home, "verify", again["artifact"]).returncode == 0


def test_a_second_codec_is_published_in_the_background_and_chosen_by_the_link(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    document = small(tmp_path, size=3000)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "text").write_text(DOCUMENT.read_text()[4000:9000])
    flags = tiny_flags(tiny_models, "qwen3")
    a = daemon("a", *flags)
    assert kvswap(a.home, "codec", "train", "--corpus", str(corpus), "--tokens", "1000").returncode == 0
    published = last_json(kvswap(a.home, "publish", str(document), "--json"))
    assert published["codec"] == "planes" and published["exact"]
    until(lambda: len(a.client.artifacts()) == 2, what="the second artifact")
    small_one = next(r for r in a.client.artifacts() if r["artifact"] != published["artifact"])
    assert small_one["wire_bytes"] < published["wire_bytes"]
    slow = daemon("slow", "--bootstrap", a.address, *flags, KVSWAP_ASSUMED_LINK_BYTES_PER_SECOND="1000")
    slow.client.trust_add(a.publisher)
    until(lambda: slow.client.status()["peers"], what="the reader to meet A")
    plan = last_json(kvswap(slow.home, "plan", digest_of(document), "--json"))
    assert plan["artifact"] == small_one["artifact"] and plan["exact"]
    done = last_json(kvswap(slow.home, "fetch", digest_of(document), "--force", "--json"))
    assert done["artifact"] == small_one["artifact"]
    # Both are pinned, and both go, by the document's name.
    assert len(a.client.pin(digest_of(document))["artifacts"]) == 2
    assert len(a.client.remove(digest_of(document))["artifacts"]) == 2
    assert a.client.artifacts() == []


def test_an_inexact_artifact_says_so_everywhere(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    document = small(tmp_path)
    flags = tiny_flags(tiny_models)
    a = daemon("a", *flags)
    done = kvswap(a.home, "publish", str(document), "--codec", "int8")
    assert done.returncode == 0 and "LOSSY" in done.stdout + done.stderr
    published = last_json(kvswap(a.home, "publish", str(document), "--codec", "int8", "--json"))
    assert published["reused"] and not published["exact"] and published["divergence"]["steps"] == 32
    lossless = next(r["artifact"] for r in a.client.artifacts() if r["artifact"] != published["artifact"])
    assert kvswap(a.home, "rm", "-y", lossless).returncode == 0
    b = daemon("b", "--bootstrap", a.address, *flags)
    b.client.trust_add(a.publisher)
    until(lambda: b.client.status()["peers"], what="B to meet A")
    refused = kvswap(b.home, "fetch", digest_of(document))
    assert refused.returncode == 7 and "--allow-lossy" in refused.stderr
    taken = kvswap(b.home, "fetch", digest_of(document), "--allow-lossy", "--force")
    assert taken.returncode == 0 and "LOSSY" in taken.stdout
    assert kvswap(b.home, "fetch", digest_of(document)).returncode == 7  # although it is here
    assert kvswap(b.home, "verify", published["artifact"]).returncode == 0
    answer = last_json(kvswap(b.home, "ask", str(document), "What?", "--allow-lossy", "--max-tokens", "4", "--json"))
    assert answer["artifact"] == published["artifact"]
    answer = last_json(kvswap(b.home, "ask", str(document), "What?", "--max-tokens", "4", "--json"))
    assert answer["artifact"] is None


def small(tmp_path: Path, name: str = "document.txt", size: int = 1500) -> Path:
    path = tmp_path / name
    path.write_text(DOCUMENT.read_text()[:size] + f"\n{name}\n")
    return path


def tiny_flags(tiny_models: dict[str, Path], kind: str = "llama") -> list[str]:
    return ["--model", str(tiny_models[kind]), "--dtype", "float32"]


def test_three_nodes_where_b_knows_only_c(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """B is told C's address alone; A is reached through what C passed on."""
    flags = tiny_flags(tiny_models)
    c = daemon("c", *flags)
    a = daemon("a", "--bootstrap", c.address, *flags)
    until(lambda: a.client.status()["peers"], what="A to meet C")
    document = small(tmp_path)
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    b = daemon("b", "--bootstrap", c.address, *flags)
    b.client.trust_add(a.publisher)
    until(lambda: b.client.status()["peers"], what="B to meet C")
    done = kvswap(b.home, "fetch", digest_of(document), "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done)["from"] == [a.ready["peer"]]
    assert c.client.artifacts() == []


def test_fetch_after_the_publishers_restart(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    flags = tiny_flags(tiny_models)
    c = daemon("c", *flags)
    a = daemon("a", "--bootstrap", c.address, *flags)
    document = small(tmp_path)
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    a.stop(signal.SIGKILL)
    a.start()  # on another port, without a model process; C learns of the new address
    b = daemon("b", "--bootstrap", c.address, *flags)
    b.client.trust_add(a.publisher)
    until(lambda: a.client.status()["peers"] and b.client.status()["peers"], what="all to meet C")
    found = until(
        lambda: (r := kvswap(b.home, "fetch", digest_of(document), "--force", "--json")).returncode == 0 and r,
        what="the fetch after the restart",
    )
    assert last_json(found)["from"] == [a.ready["peer"]]


def test_the_longest_published_prefix_is_found(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    a, b = pair(daemon, *tiny_flags(tiny_models), KVSWAP_BLOCK_TOKENS="32")
    document = small(tmp_path)
    published = last_json(kvswap(a.home, "publish", str(document), "--json"))
    other = tmp_path / "other.txt"
    other.write_text(document.read_text()[:1000] + " and then something else entirely, which nobody has published")
    plan = last_json(kvswap(b.home, "plan", str(other), "--json"))
    assert plan["action"] == "prefill" and plan["artifact"] is None
    shared = plan["shared_prefix"]
    assert shared["artifact"] == published["artifact"] and shared["from"] == [a.ready["peer"]]
    assert 0 < shared["tokens"] < published["tokens"] and shared["tokens"] % 32 == 0
    stranger = tmp_path / "stranger.txt"
    stranger.write_text("Nothing of this was ever published by anyone.")
    assert last_json(kvswap(b.home, "plan", str(stranger), "--json"))["shared_prefix"] is None
    assert kvswap(b.home, "plan", digest_of(other)).returncode == 5  # without the text there is nothing to plan


@pytest.mark.parametrize(
    "kind", ["llama", "gemma3", *(pytest.param(kind, marks=pytest.mark.model) for kind in ("qwen3", "gemma3-wide"))]
)
def test_a_shared_beginning_is_fetched_and_the_rest_prefilled(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """The answer has the bits of a full canonical prefill; the shared chunks are stored once."""
    flags = tiny_flags(tiny_models, kind)
    a, b = pair(daemon, *flags, KVSWAP_BLOCK_TOKENS="32")
    document = small(tmp_path)
    published = last_json(kvswap(a.home, "publish", str(document), "--json"))
    other = tmp_path / "other.txt"
    other.write_text(document.read_text()[:1000] + " and then something else entirely, which nobody has published")
    ask = ("ask", str(other), "What next?", "--max-tokens", "24", "--ignore-eos", "--json")
    alone = last_json(kvswap(b.home, *ask, "--prefill"))
    shared = last_json(kvswap(b.home, *ask, "--force", "--objective", "money"))  # waits for what it can fetch
    assert shared["artifact"] == published["artifact"]
    assert 0 < shared["fetched_tokens"] < shared["tokens"] and shared["fetched_tokens"] % 32 == 0
    assert shared["logits_digest"] == alone["logits_digest"] and shared["token_ids"] == alone["token_ids"]
    assert b.client.status()["store_bytes"] < published["wire_bytes"]  # only what is shared came
    again = last_json(kvswap(b.home, *ask, "--force"))
    assert again["logits_digest"] == alone["logits_digest"]
    before = a.client.status()["store_bytes"]
    second = last_json(kvswap(a.home, "publish", str(other), "--json"))
    grown = a.client.status()["store_bytes"] - before
    assert 0 < grown < second["wire_bytes"]  # common chunks are there already


def test_bad_documents_are_refused_before_any_work(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    node = daemon("a", *tiny_flags(tiny_models))
    cases = {
        "empty.txt": b"",
        "blank.txt": b" \n\t\n",
        "binary.bin": bytes(range(256)) * 10,
        "nul.txt": b"text with a \0 in it",
        "large.txt": b"word " * (50_000_000 // 5),
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        done = kvswap(node.home, "publish", str(tmp_path / name))
        assert done.returncode == 2, name
        assert name in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert kvswap(node.home, "publish", str(tmp_path / "missing.txt")).returncode == 2
    assert kvswap(node.home, "publish", str(tmp_path)).returncode == 2
    assert node.client.status()["model"]["pid"] is None  # nothing was loaded for any of these


def test_a_document_longer_than_the_context(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    node = daemon("a", *tiny_flags(tiny_models))
    document = tmp_path / "long.txt"
    document.write_text(DOCUMENT.read_text())  # some 6,000 tokens for a context of 2,048
    done = kvswap(node.home, "publish", str(document))
    assert done.returncode == 2
    assert "2048" in done.stderr and "--truncate" in done.stderr
    assert node.client.status()["store_bytes"] == 0
    done = kvswap(node.home, "publish", str(document), "--truncate", "--json")
    assert done.returncode == 0, done.stderr
    tokens = last_json(done)["tokens"]
    assert tokens % 256 == 0 and 2048 - 256 * 2 < tokens < 2048


def test_untrusted_unknown_and_incompatible(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    a = daemon("a", *tiny_flags(tiny_models))
    document = small(tmp_path)
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    ref = digest_of(document)
    b = daemon("b", "--bootstrap", a.address, *tiny_flags(tiny_models))
    until(lambda: b.client.status()["peers"], what="B to meet A")
    done = kvswap(b.home, "fetch", ref)
    assert done.returncode == 4
    assert f"kvswap trust add {a.publisher}" in done.stderr
    assert b.client.status()["bytes_in"] == 0
    b.client.trust_add(a.publisher)
    done = kvswap(b.home, "fetch", "sha256:" + "0" * 64)
    assert done.returncode == 5
    assert kvswap(b.home, "fetch", "nonsense").returncode == 2
    c = daemon("c", "--bootstrap", a.address, "--model", str(tiny_models["llama"]), "--dtype", "bfloat16")
    d = daemon("d", "--bootstrap", a.address, "--model", str(tiny_models["qwen3"]), "--dtype", "float32")
    for node, field in ((c, "dtype"), (d, "model")):
        node.client.trust_add(a.publisher)
        until(lambda node=node: node.client.status()["peers"], what="it to meet A")
        done = kvswap(node.home, "fetch", ref, "--json")
        assert done.returncode == 7
        assert last_json(done)["error"]["details"]["field"] == field
    assert kvswap(b.home, "fetch", ref, "--tofu", "--force").returncode == 0


def test_a_plan_that_says_prefill_is_exit_8_with_the_figures(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    a = daemon("a", *tiny_flags(tiny_models))
    document = small(tmp_path)
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    b = daemon("b", "--bootstrap", a.address, *tiny_flags(tiny_models), KVSWAP_ASSUMED_LINK_BYTES_PER_SECOND="1000")
    b.client.trust_add(a.publisher)
    until(lambda: b.client.status()["peers"], what="B to meet A")
    plan = last_json(kvswap(b.home, "plan", digest_of(document), "--json"))
    assert plan["basis"]["prefill"]["a"] > 0 and plan["basis"]["prices"]["value_per_second"] > 0
    explained = kvswap(b.home, "plan", digest_of(document), "--explain").stdout
    assert "1.0 kB/s (assumed)" in explained and "a second of waiting" in explained
    # Budgets: what breaks one is not done, whatever else is said of it.
    assert kvswap(b.home, "fetch", digest_of(document), "--max-bytes", "10").returncode == 8
    assert kvswap(b.home, "ask", str(document), "What?", "--max-seconds", "0").returncode == 8
    assert kvswap(b.home, "plan", digest_of(document), "--max-dollars", "-1").returncode == 2
    assert plan["action"] == "prefill" and plan["fetch"]["seconds"] > plan["prefill"]["seconds"]
    done = kvswap(b.home, "fetch", digest_of(document), "--json")
    assert done.returncode == 8
    error = last_json(done)["error"]
    assert error["details"]["plan"]["prefill"]["seconds"] > 0 and "--force" in error["hint"]
    assert b.client.status()["bytes_in"] == 0
    answer = ask(b, str(document), steps=8)  # with the text at hand, ask prefills instead
    assert answer["plan"]["action"] == "prefill" and answer["artifact"] is None
    assert kvswap(b.home, "fetch", digest_of(document), "--force").returncode == 0
    assert ask(b, str(document), steps=8)["token_ids"] == answer["token_ids"]


def test_metered_egress_is_declined(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    a = daemon("a", *tiny_flags(tiny_models))
    document = small(tmp_path)
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    b = daemon("b", "--bootstrap", a.address, *tiny_flags(tiny_models), KVSWAP_PRICE_PER_GB="1000")
    b.client.trust_add(a.publisher)
    until(lambda: b.client.status()["peers"], what="B to meet A")
    done = kvswap(b.home, "fetch", digest_of(document), "--json")
    assert done.returncode == 8
    assert last_json(done)["error"]["details"]["plan"]["fetch"]["dollars"] > 0


def test_a_store_without_room_is_exit_12_and_intact(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    a = daemon("a", *tiny_flags(tiny_models), KVSWAP_QUOTA_BYTES="20000")
    document = small(tmp_path)
    done = kvswap(a.home, "publish", str(document))
    assert done.returncode == 12, done.stderr
    assert "kvswap gc" in done.stderr
    assert kvswap(a.home, "verify", "--store").returncode == 0
    assert a.client.artifacts() == []


def test_ctrl_c_is_130_and_the_next_run_goes_on(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    a = daemon("a", *tiny_flags(tiny_models))
    document = small(tmp_path, size=4000)
    command = [sys.executable, "-m", "kvswap", "publish", "--home", str(a.home), str(document), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    process.stdout.readline()  # the first progress event: it works
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    if process.returncode != 0:  # it may have been done already
        assert process.returncode == 130
        assert "Traceback" not in stderr
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    assert kvswap(a.home, "verify", "--store").returncode == 0


def test_two_publishers_of_one_document_serve_it_together(
    daemon: Start, tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    flags = tiny_flags(tiny_models)
    a, b = pair(daemon, *flags)
    document = small(tmp_path, size=4000)
    assert kvswap(a.home, "publish", str(document)).returncode == 0
    assert kvswap(b.home, "fetch", digest_of(document), "--force").returncode == 0
    c = daemon("c", "--bootstrap", a.address, "--bootstrap", b.address, *flags)
    c.client.trust_add(a.publisher)
    until(lambda: c.client.status()["peers"] == 2, what="C to meet both")
    done = kvswap(c.home, "fetch", digest_of(document), "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert set(last_json(done)["from"]) <= {a.ready["peer"], b.ready["peer"]}
    a.stop(signal.SIGKILL)
    d = daemon("d", "--bootstrap", b.address, *flags)
    d.client.trust_add(a.publisher)
    until(lambda: d.client.status()["peers"], what="D to meet B")
    done = kvswap(d.home, "fetch", digest_of(document), "--force", "--json")
    assert done.returncode == 0 and last_json(done)["from"] == [b.ready["peer"]], done.stderr


def test_rm_pin_gc_and_ls(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    a = daemon("a", *tiny_flags(tiny_models))
    document = small(tmp_path)
    artifact = last_json(kvswap(a.home, "publish", str(document), "--json"))["artifact"]
    assert last_json(kvswap(a.home, "publish", str(document), "--json"))["reused"] is True
    assert kvswap(a.home, "pin", artifact).returncode == 0
    assert last_json(kvswap(a.home, "gc", "--to", "0", "--json"))["store_bytes"] > 0
    assert kvswap(a.home, "unpin", str(document)).returncode == 0
    assert kvswap(a.home, "rm", artifact, "--dry-run").returncode == 0
    assert kvswap(a.home, "rm", artifact).returncode == 2  # needs a yes
    assert [r["artifact"] for r in last_json(kvswap(a.home, "ls", "--json"))["artifacts"]] == [artifact]
    assert last_json(kvswap(a.home, "rm", "-y", artifact, "--json"))["freed_bytes"] > 0
    assert kvswap(a.home, "show", artifact).returncode == 5
    assert a.client.status()["store_bytes"] == 0
