"""Ten cells of honest artifacts through real daemons: five families, by a stranger and by who trusts the publisher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvswap.core.errors import Untrusted
from tests.families import build
from tests.support import DOCUMENT, Daemon, until

pytestmark = [pytest.mark.swarm, pytest.mark.faults]
Start = Callable[..., Daemon]
TEXT = DOCUMENT.read_text()[:700]  # fewer tokens than a window of 512; the answer goes beyond it
# What a stranger's artifact comes to: used, or refused with this reason.  Nobody is condemned in either case.
FAMILIES = {
    "gemma3-512": "",
    "gpt2": "cannot be read back",
    "deepseek-v3": "",
    "phi3": "a window of it",
    "falcon-alibi": "",
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_an_honest_publisher_is_condemned_by_nobody(daemon: Start, tmp_path: Path, family: str) -> None:
    model = build(tmp_path / family, family)
    flags = ("--model", str(model), "--dtype", "float32", "--threads", "1")
    a = daemon("a", *flags, KVSWAP_BLOCK_TOKENS="64")
    published = a.client.publish(TEXT)
    b = daemon("b", "--bootstrap", a.address, *flags, KVSWAP_BLOCK_TOKENS="64")
    until(lambda: b.client.status()["peers"] >= 1, what="the reader to meet the publisher")
    # A stranger's, by the digest alone.
    if why := FAMILIES[family]:
        with pytest.raises(Untrusted, match=why):
            b.client.fetch(published["document"], force=True, allow_untrusted=True)
    else:
        assert b.client.fetch(published["document"], force=True, allow_untrusted=True).report["artifact"]
    # A trusted publisher's, with an answer that moves every window.
    b.client.trust_add(a.publisher)
    answer = b.client.ask(published["document"], "What?", text=TEXT, max_tokens=300, ignore_eos=True, force=True)
    assert answer["artifact"] == published["artifact"] and answer["unchecked"] == {}
    assert b.client.trust_list()["distrusted"] == []
    assert [audit for audit in b.client.audits() if audit["verdict"] == "failed"] == []
    assert [row["artifact"] for row in b.client.artifacts()] == [published["artifact"]]
