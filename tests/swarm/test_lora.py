"""A LoRA between two daemons: its base's cache is none of its own, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.test_adapters import make
from tests.support import DOCUMENT, kvswap, last_json
from tests.swarm.test_main_job import Start, ask, check_main_job, digest_of, pair

pytestmark = [pytest.mark.swarm]


def test_the_main_job_with_an_adapter(daemon: Start, tiny_models: dict[str, Path], tmp_path: Path) -> None:
    base = tiny_models["llama"]
    lora = make(base, tmp_path / "lora")
    a, b = pair(daemon, "--model", str(lora), "--dtype", "bfloat16")
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT.read_text()[:1500])
    check_main_job(a, b, document, 12)
    plain = daemon("plain", "--bootstrap", a.address, "--model", str(base), "--dtype", "bfloat16")
    plain.client.trust_add(a.publisher)
    done = kvswap(plain.home, "fetch", digest_of(document), "--force", "--json")
    assert done.returncode in (4, 7), (done.returncode, done.stderr)
    assert last_json(done)["error"]["code"] in ("not_found", "incompatible")
    own, other = (ask(node, str(document), "--prefill", steps=12) for node in (plain, b))
    assert own["logits_digest"] != other["logits_digest"]
