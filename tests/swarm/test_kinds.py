"""One family of each kind of layer between two daemons: published there, continued from here, whole and in part."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.families import build
from tests.support import DOCUMENT, kvswap, last_json
from tests.swarm.test_main_job import Start, ask, check_main_job, pair

pytestmark = [pytest.mark.swarm, pytest.mark.faults, pytest.mark.timeout(600)]


@pytest.mark.parametrize("family", ["lfm2", "qwen3.5", "falcon-h1", "deepseek-v3.2", "mamba2"])
def test_the_main_job(daemon: Start, tmp_path: Path, family: str) -> None:
    a, b = pair(daemon, "--model", str(build(tmp_path / "model", family)), "--dtype", "bfloat16")
    text = DOCUMENT.read_text()
    document = tmp_path / "document.txt"
    document.write_text(text[:2000])
    check_main_job(a, b, document, steps=12)
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
