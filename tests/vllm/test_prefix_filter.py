"""What could be found, as an engine knows it: kept up to date by real nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvswap.core.errors import UsageError
from kvswap.core.ids import blake3_digest
from kvswap.integrations.vllm.prefix_filter import PrefixFilter
from tests.support import DOCUMENT, Daemon, tiny_model, until
from tests.vllm.running import Engine

BLOCK = 64
ENV = {"KVSWAP_BLOCK_TOKENS": str(BLOCK), "KVSWAP_ALSO_CODEC": ""}
TEXT = DOCUMENT.read_text()


class Silent:
    """A node that does not answer."""

    def prefix_index(self, version: str, wait: float) -> tuple[str, bytes | None]:
        raise UsageError("no")


def test_until_the_node_was_heard_all_may_be_there() -> None:
    known = PrefixFilter(Silent())  # type: ignore[arg-type]
    assert known.may_have(b"x" * 32)
    known.close()


def test_keys_are_found_and_others_not() -> None:
    digests, others = ([blake3_digest(bytes([kind, i])) for i in range(256)] for kind in range(2))
    known = PrefixFilter(Silent())  # type: ignore[arg-type]
    known._keys = PrefixFilter.sorted(b"".join(digest[:8] for digest in digests + digests[:7]))
    assert all(known.may_have(digest) for digest in digests)
    assert not any(known.may_have(digest) for digest in others)
    known._keys = PrefixFilter.sorted(b"")
    assert not known.may_have(digests[0])
    with pytest.raises(ValueError):
        PrefixFilter.sorted(b"1234567")
    known.close()


def test_what_is_published_here_or_by_a_peer_is_known_at_once(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "llama", "llama", head_dim=32)
    flags = ["--model", str(model), "--dtype", "float32"]
    publisher = daemon("publisher", *flags, **ENV)
    node = daemon("node", *flags, "--bootstrap", publisher.address, **ENV)
    until(lambda: node.client.status()["peers"] >= 1, what="the nodes to meet")
    version, keys = node.client.prefix_index()
    assert keys == b"" and node.client.prefix_index("other")[0] == version
    known = PrefixFilter(node.client)
    here, there = TEXT[:900], TEXT[2000:2900]
    for client, text in ((node.client, here), (publisher.client, there)):
        artifact = client.publish(text)["artifact"]
        prefix = client.show(artifact)["manifest"]["prefix"]
        for digest in map(bytes.fromhex, prefix["chain"]):
            until(lambda digest=digest: known.may_have(digest) and not known.may_have(digest[::-1]))  # type: ignore[misc]
    node.client.group_new("lab")  # whose documents have other names
    until(lambda: known.may_have(b"x" * 32), what="the node to say that it has to be asked")
    node.stop()
    assert known.may_have(b"x" * 32)
    known.close()


def test_an_engine_that_asks_only_for_what_may_be_there_finds_it(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tiny_model(tmp_path / "llama", "llama", head_dim=32)
    node = daemon("node", "--model", str(model), "--dtype", "float32", **ENV)
    engine = Engine(
        tmp_path / "engine.log",
        model=str(model),
        dtype="float32",
        max_model_len=2048,
        block_size=32,
        home=str(node.home),
        extra={"block_tokens": BLOCK, "min_tokens": BLOCK, "force": True},
    )
    try:
        ids = list(AutoTokenizer.from_pretrained(model)(TEXT[:1500])["input_ids"])
        (cold,) = engine.run(ids)
        node.client.publish(TEXT[:1200])
        hit = until(
            lambda: next((o for o in engine.run(ids, reset=True) if o.cached), None), 120, "the engine to find it"
        )
    finally:
        engine.stop()
    assert cold.cached == 0 and hit.ids == cold.ids and engine.loads == 1
