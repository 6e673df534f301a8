"""Trained models of other families: sliding layers with one key head, and biased keys, between two daemons.

Random weights keep every value near 0; in a trained model keys and values span many magnitudes, which is what codecs,
measured noise and exactness have to bear.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import DOCUMENT, kvswap, last_json
from tests.swarm.test_main_job import Start, ask, digest_of, pair
from tests.trained import trained
from tests.worker.test_hybrid import Feeder

pytestmark = [pytest.mark.swarm, pytest.mark.model]
NAMES = ["gemma3-270m", "qwen2.5-coder-0.5b"]


@pytest.mark.parametrize("name", NAMES)
def test_published_here_and_continued_there(daemon: Start, tmp_path: Path, name: str) -> None:
    text = DOCUMENT.read_text()
    document, longer = tmp_path / "document.txt", tmp_path / "longer.txt"
    document.write_text(text[:1500])
    longer.write_text(text[:1500] + text[6000:6300])
    a, b = pair(daemon, "--model", str(trained(name)), "--dtype", "bfloat16", KVSWAP_ALSO_CODEC="")
    published = last_json(done := kvswap(a.home, "publish", str(document), "--json"))
    assert done.returncode == 0 and published["tokens"] > 256, done.stderr
    fetched = last_json(done := kvswap(b.home, "fetch", digest_of(document), "--force", "--json"))
    assert done.returncode == 0 and fetched["artifact"] == published["artifact"] and fetched["verified"], done.stderr
    for ref, path in ((digest_of(document), document), (str(longer), longer)):
        loaded, prefilled = ask(b, ref, "--force", steps=8), ask(b, str(path), "--prefill", steps=8)
        assert loaded["artifact"] == published["artifact"] and prefilled["artifact"] is None
        assert loaded["token_ids"] == prefilled["token_ids"]
        assert loaded["logits_digest"] == prefilled["logits_digest"]
    # What is asked of a stranger finds an honest artifact right, by noise measured of trained weights.
    report = last_json(done := kvswap(b.home, "verify", published["artifact"], "--level", "5", "--json"))
    assert done.returncode == 0 and report["verified"], done.stderr
    assert {step["verdict"] for step in report["steps"]} <= {"passed", "skipped"}, report["steps"]


@pytest.mark.parametrize("name", NAMES)
def test_both_at_once(tmp_path: Path, name: str) -> None:
    """Computed from the front while the rest is fetched from the back."""
    feeder = Feeder(trained(name), tmp_path, dtype="bfloat16")
    text = DOCUMENT.read_text()[:400]
    feeder.publish(text)
    whole = feeder.jobs.run({"text": text, "job": "answer", "question": "What?", "steps": 12, "block_tokens": 32,
                             "ignore_eos": True})  # fmt: skip
    feeder.available.clear()
    got = feeder.run(text=text)
    assert got["logits_digest"] == whole["logits_digest"] and got["claim"] == "bitwise"
    assert 0 < len(feeder.available) < len(feeder.units)
