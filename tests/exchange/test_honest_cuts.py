"""An honest publisher who cuts blocks at checkpoints is condemned by nobody, whatever its model's layers keep."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.core.ids import Cid
from kvswap.exchange.fetch import fetch
from kvswap.exchange.prefix import fetch_prefix, find_prefix
from kvswap.exchange.publish import PublishOptions, publish
from kvswap.exchange.request import Terms
from kvswap.exchange.verify import verify_artifact
from kvswap.trust.levels import Level, up_to
from tests.exchange.modelled import publisher_and_reader
from tests.families import build
from tests.support import DOCUMENT, run

TEXT = DOCUMENT.read_text()[:700]
CUT = 100  # tokens: within the second block of 64


@pytest.mark.parametrize("family", ["llama", "gemma3-80", "lfm2"])
def test_an_artifact_with_cuts_is_right_on_every_way_and_never_wrong(family: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with publisher_and_reader(tmp_path, build(tmp_path / "model", family)) as (_, a, b):
            made = await publish(a, TEXT.encode(), PublishOptions(checkpoints=(CUT,)))
            artifact, publisher = Cid.parse(made.artifact), str(a.identity.publisher.peer_id)
            assert CUT in made.checkpoints
            b.trust.policy.remove(publisher)
            strangers = Terms(allow_untrusted=True, force=True)
            got = await fetch(b, artifact, strangers, text=TEXT)
            assert {"V2", "V3", "V5"} <= set(got.verification.passed)
            done = await verify_artifact(b, artifact, levels=up_to(Level.RECOMPUTE), text=TEXT)
            assert "V7" in done.passed and not [c for c in done.checks if c.verdict == "failed"]
            assert (await fetch(b, artifact, strangers, text=TEXT)).wire_bytes == 0
            assert b.trust.policy.policy.ban_of(publisher) is None
            # A beginning: of a model with windows or states not of an untrusted publisher, whatever was verified.
            other = TEXT[: len(TEXT) * 2 // 3] + " And something else entirely, which nobody has published yet."
            choice = await b.model.choose()
            _, found = await find_prefix(b, choice, other, Terms(force=True))
            assert (found is not None) is (family == "llama")
            b.trust.policy.add(publisher)
            _, found = await find_prefix(b, choice, other, Terms(force=True))
            assert found is not None and 0 < found.tokens < made.tokens
            await fetch_prefix(b, found, Terms(force=True))
            assert b.trust.policy.policy.ban_of(publisher) is None

    run(body())
