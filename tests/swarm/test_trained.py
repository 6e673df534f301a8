"""Trained models of other families: sliding layers with one key head, and biased keys, between two daemons.

Random weights keep every value near 0; in a trained model keys and values span many magnitudes, which is what codecs,
measured noise and exactness have to bear.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import DOCUMENT, kvswap, last_json
from tests.swarm.test_main_job import Start, ask, check_main_job, pair
from tests.trained import trained

pytestmark = [pytest.mark.swarm, pytest.mark.model]


@pytest.mark.parametrize("name", ["gemma3-270m", "qwen2.5-coder-0.5b"])
def test_published_here_and_continued_there(daemon: Start, tmp_path: Path, name: str) -> None:
    text = DOCUMENT.read_text()
    document, longer = tmp_path / "document.txt", tmp_path / "longer.txt"
    document.write_text(text[:2000])
    longer.write_text(text[:2000] + text[6000:6600])
    a, b = pair(daemon, "--model", str(trained(name)), "--dtype", "bfloat16", KVSWAP_ALSO_CODEC="")
    check_main_job(a, b, document, 16)
    resumed, prefilled = ask(b, str(longer), "--force", steps=16), ask(b, str(longer), "--prefill", steps=16)
    assert resumed["artifact"] is not None and resumed["fetched_tokens"] >= 256
    assert resumed["token_ids"] == prefilled["token_ids"]
    assert resumed["logits_digest"] == prefilled["logits_digest"]
    # What is asked of a stranger finds an honest artifact right, by noise measured of trained weights.
    report = last_json(done := kvswap(b.home, "verify", resumed["artifact"], "--level", "5", "--json"))
    assert done.returncode == 0 and report["verified"], done.stderr
    assert {step["verdict"] for step in report["steps"]} <= {"passed", "skipped"}, report["steps"]
