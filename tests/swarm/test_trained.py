"""Trained models of other families: sliding layers with one key head, and biased keys, between two daemons.

Random weights keep every value near 0; in a trained model keys and values span many magnitudes, which is what codecs,
measured noise and exactness have to bear.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvswap.model.load import load_model
from kvswap.model.prefill import greedy, prefill
from tests.support import DOCUMENT, kvswap, last_json
from tests.swarm.test_main_job import Start, ask, digest_of, pair
from tests.trained import trained
from tests.worker.test_hybrid import Feeder

pytestmark = [pytest.mark.swarm, pytest.mark.model]
NAMES = ["gemma3-270m", "qwen2.5-coder-0.5b"]
STEPS = 8


@pytest.mark.parametrize("name", NAMES)
def test_published_here_and_continued_there(daemon: Start, tmp_path: Path, name: str) -> None:
    """Fetched whole by its digest, and as the prefix of a longer text."""
    text = DOCUMENT.read_text()
    document, longer = tmp_path / "document.txt", tmp_path / "longer.txt"
    document.write_text(text[:1500])
    longer.write_text(text[:1500] + text[6000:6300])
    a, b = pair(daemon, "--model", str(trained(name)), "--dtype", "bfloat16", KVSWAP_ALSO_CODEC="")
    published = last_json(done := kvswap(a.home, "publish", str(document), "--json"))
    assert done.returncode == 0 and published["tokens"] > 256, done.stderr
    fetched = last_json(done := kvswap(b.home, "fetch", digest_of(document), "--force", "--json"))
    assert done.returncode == 0 and fetched["artifact"] == published["artifact"] and fetched["verified"], done.stderr
    loaded, prefilled = ask(b, digest_of(document), steps=STEPS), ask(b, str(document), "--prefill", steps=STEPS)
    assert loaded["artifact"] == published["artifact"] and prefilled["artifact"] is None
    assert same(loaded, prefilled)
    resumed, prefilled = ask(b, str(longer), "--force", steps=STEPS), ask(b, str(longer), "--prefill", steps=STEPS)
    assert resumed["artifact"] == published["artifact"] and prefilled["artifact"] is None
    assert same(resumed, prefilled)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["token_ids"] == other["token_ids"] and one["logits_digest"] == other["logits_digest"])


@pytest.mark.parametrize("name", NAMES)
def test_both_at_once_and_what_it_says(tmp_path: Path, name: str) -> None:
    """Computed from the front while the rest is fetched from the back; and it is a trained model."""
    directory = trained(name)
    feeder = Feeder(directory, tmp_path, dtype="bfloat16")
    text = DOCUMENT.read_text()[:600]
    feeder.publish(text)
    whole = feeder.jobs.run({"text": text, "job": "answer", "question": "What?", "steps": 12, "block_tokens": 32,
                             "ignore_eos": True})  # fmt: skip
    feeder.available.clear()
    got = feeder.run(text=text)
    assert got["logits_digest"] == whole["logits_digest"] and got["claim"] == "bitwise"
    assert 0 < len(feeder.available) < len(feeder.units)
    loaded = load_model(directory, name, "bfloat16")
    ids = loaded.tokenize("The capital of France is")
    said = greedy(loaded, prefill(loaded, ids[:-1], 32), len(ids) - 1, ids[-1:], 4).token_ids
    assert "Paris" in loaded.tokenizer.decode(said)
