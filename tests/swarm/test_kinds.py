"""One family of each kind of layer between two daemons: published there, continued from here, whole and in part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.families import build
from tests.support import DOCUMENT, kvswap, last_json, until
from tests.swarm.test_main_job import Start, ask, check_main_job, digest_of, pair

pytestmark = [pytest.mark.swarm, pytest.mark.faults, pytest.mark.timeout(600)]


# Full attention and windows are in test_main_job.
KINDS = {
    "deepseek-v3": "latents",
    "deepseek-v3.2": "latents with an index",
    "qwen3.5": "a delta net",
    "kimi-linear": "KDA, and latents",
    "granite4-h": "Mamba 2 beside attention",
    "mamba2": "Mamba 2 alone",
    "lfm2": "a short convolution",
    "falcon-h1": "keys and values and a state in one layer",
}


@pytest.mark.parametrize("family", KINDS)
def test_the_main_job(daemon: Start, tmp_path: Path, family: str) -> None:
    a, b = pair(daemon, "--model", str(build(tmp_path / "model", family)), "--dtype", "bfloat16")
    text = DOCUMENT.read_text()
    document = tmp_path / "document.txt"
    document.write_text(text[:2000])
    check_main_job(a, b, document, steps=12)
    chunks = a.client.show(digest_of(document))["manifest"]["chunks"]
    assert {chunk["codec"] for chunk in chunks} == {"planes"}  # the codec where no predictor was trained
    # A longer text begins with it: it is continued from where it can be, and the same as without kvswap.
    longer = tmp_path / "longer.txt"
    longer.write_text(text[:2000] + text[5000:5600])
    resumed, prefilled = ask(b, str(longer), "--force", steps=12), ask(b, str(longer), "--prefill", steps=12)
    assert resumed["token_ids"] == prefilled["token_ids"]
    if family in ("lfm2", "deepseek-v3.2"):  # a checkpoint, or the end of a block, in every block
        for node in (a, b):  # b has fetched it whole, and so its end alone: the rest is asked of others
            own = ask(node, str(longer), "--force", steps=12)
            assert own["artifact"] is not None and "tokens are published" in own["plan"]["reason"], own
            assert own["token_ids"] == prefilled["token_ids"]


def test_with_a_predictor(daemon: Start, tmp_path: Path) -> None:
    """Full layers are predicted, where that is smaller, beside states that are not."""
    text = DOCUMENT.read_text()
    document, corpus = tmp_path / "document.txt", tmp_path / "corpus"
    document.write_text(text[:1200])
    corpus.mkdir()
    (corpus / "text").write_text(text[4000:8000])
    flags = ("--model", str(build(tmp_path / "model", "qwen3.5")), "--dtype", "bfloat16")
    a, b = pair(daemon, *flags, KVSWAP_CODEC="predictive", KVSWAP_BLOCK_TOKENS="64")
    trained = kvswap(a.home, "codec", "train", "--corpus", str(corpus), "--tokens", "1000", "--json")
    assert trained.returncode == 0, trained.stderr
    check_main_job(a, b, document, steps=12)
    chunks = a.client.show(digest_of(document))["manifest"]["chunks"]
    assert {chunk["codec"] for chunk in chunks} == {"planes", "predictive2"}


@pytest.mark.parametrize("family", ["qwen3.5", "granite4-h"])
def test_an_untrusted_publishers_states_are_verified_by_intervals(daemon: Start, tmp_path: Path, family: str) -> None:
    flags = ("--model", str(build(tmp_path / "model", family)), "--dtype", "float32")
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT.read_text()[:1200])
    a = daemon("a", *flags, KVSWAP_BLOCK_TOKENS="64")
    done = kvswap(a.home, "publish", str(document), "--checkpoints", "64,128,192,256", "--json")
    assert done.returncode == 0, done.stderr
    made = last_json(done)
    b = daemon("b", "--bootstrap", a.address, *flags, KVSWAP_BLOCK_TOKENS="64")
    until(lambda: b.client.status()["peers"], what="the reader to meet the publisher")
    refused = kvswap(b.home, "fetch", str(document), "--force")
    assert refused.returncode == 4 and "--allow-untrusted" in refused.stderr
    done = kvswap(b.home, "fetch", str(document), "--force", "--allow-untrusted", "--json")
    assert done.returncode == 0, done.stderr
    (told,) = [event for line in done.stdout.splitlines() if (event := json.loads(line)).get("event") == "intervals"]
    assert 0 < told["intervals"] < told["of"] and last_json(done)["artifact"] == made["artifact"]
    assert {"V3", "V5"} <= set(last_json(done)["verification"]["passed"])
    answered = ask(b, str(document), "--allow-untrusted", "--force", steps=12)
    assert answered["artifact"] == made["artifact"]
    assert answered["token_ids"] == ask(b, str(document), "--prefill", steps=12)["token_ids"]
    assert b.client.trust_list()["distrusted"] == []


def test_a_checkpoint_within_a_block(daemon: Start, tmp_path: Path) -> None:
    """Two texts with a beginning in common that ends where no block does."""
    a, b = pair(daemon, "--model", str(build(tmp_path / "model", "qwen3.5")), "--dtype", "float32")
    text = DOCUMENT.read_text()
    one, other = tmp_path / "one.txt", tmp_path / "other.txt"
    one.write_text(text[:1100] + text[3000:4000])
    other.write_text(text[:1100] + text[6000:7000])
    shared = common(one, other)
    assert shared % 256 > 8  # so that the test is of what it says
    done = kvswap(a.home, "publish", str(one), "--checkpoints", str(shared), "--json")
    assert done.returncode == 0, done.stderr
    made = last_json(done)
    assert shared in made["checkpoints"] and made["state_bytes"] > 0
    resumed = ask(b, str(other), "--force", steps=12)
    assert resumed["artifact"] == made["artifact"] and f"the first {shared} of" in resumed["plan"]["reason"]
    assert resumed["token_ids"] == ask(b, str(other), "--prefill", steps=12)["token_ids"]


def common(one: Path, other: Path) -> int:
    """How many tokens two texts have in common from the first on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(one.parent / "model")
    pairs = zip(tokenizer(one.read_text())["input_ids"], tokenizer(other.read_text())["input_ids"], strict=False)
    return next(i for i, (a, b) in enumerate(pairs) if a != b)
