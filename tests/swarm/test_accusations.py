"""Ten cells of honest artifacts through real daemons: five families, by a stranger and by who trusts the publisher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.families import build
from tests.support import DOCUMENT, Daemon, kvswap, last_json, until

pytestmark = [pytest.mark.swarm, pytest.mark.faults, pytest.mark.timeout(600)]
Start = Callable[..., Daemon]
TEXT = DOCUMENT.read_text()[:1100]  # fewer tokens than a window of 512; the answer goes beyond it
# What a stranger's artifact comes to: used, or refused with this reason.  Nobody is condemned in either case.
FAMILIES = {
    "gemma3-512": "one by one",  # V5 is not run for a model with windows
    "gpt2": "cannot be read back",
    "deepseek-v3": "",
    "phi3": "sliding",
    "falcon-alibi": "one by one",
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_honest_publisher_is_condemned_by_nobody(daemon: Start, tmp_path: Path, family: str) -> None:
    model = build(tmp_path / family, family)
    flags = ("--model", str(model), "--dtype", "float32", "--threads", "1")
    document = tmp_path / "document.txt"
    document.write_text(TEXT)
    a = daemon("a", *flags, KVSWAP_BLOCK_TOKENS="64")
    published = last_json(kvswap(a.home, "publish", str(document), "--json"))
    b = daemon("b", "--bootstrap", a.address, *flags, KVSWAP_BLOCK_TOKENS="64")
    until(lambda: b.client.status()["peers"] >= 1, what="the reader to meet the publisher")
    # A stranger's, by the digest alone.
    done = kvswap(b.home, "fetch", published["document"], "--force", "--strangers")
    why = FAMILIES[family]
    assert done.returncode == (4 if why else 0) and why in done.stderr, done.stderr
    # A trusted publisher's, with an answer that moves every window.
    b.client.trust_add(a.publisher)
    asked = kvswap(b.home, "ask", str(document), "What?", "--max-tokens", "150", "--ignore-eos", "--force", "--json")
    assert asked.returncode == 0, asked.stderr
    answer = last_json(asked)
    assert answer["artifact"] == published["artifact"] and answer["unchecked"] == {}
    assert b.client.trust_list()["distrusted"] == []
    assert [audit for audit in b.client.audits() if audit["verdict"] == "failed"] == []
    assert [row["artifact"] for row in b.client.artifacts()] == [published["artifact"]]
