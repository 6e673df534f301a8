"""A document that begins as an own artifact does: its first blocks are loaded, and all that is signed is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.artifact import dsse
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import Manifest
from kvswap.core.ids import Cid
from kvswap.store.files import ChunkFiles
from kvswap.worker.reusing import shared_tokens
from tests.families import build
from tests.support import DOCUMENT, key, manifest_of
from tests.worker.test_jobs import jobs

BLOCK = 32
TEXT = DOCUMENT.read_text()[:900]
CHANGED = TEXT[:700] + "Another end, which is new. " + TEXT[700:800]


def publish(
    directory: Path, seen: list[dict[str, Any]], made: Any, text: str, base: Manifest | None = None
) -> tuple[Manifest, int]:
    """Publish a text, with a base or without; the manifest, and how many tokens came from the base."""
    seen.clear()
    files = ChunkFiles(directory)
    job: dict[str, Any] = {"job": "publish", "text": text, "block_tokens": BLOCK, "codec": "planes"}
    if base is not None:
        envelope = dsse.seal(base.encode(), base.publisher, key().sign)
        job |= {"base": envelope, "chunks": str(files.directory)}
    result = made.run(job)
    chunks = [m for m in seen if m["event"] == "chunk"]
    for message in chunks:
        files.write(Cid.of(message["data"]), message["data"])
    fields = {name: result[name] for name in ("model", "prefix", "layout", "numerics", "tensors", "probe")}
    refs = sorted((m["ref"] for m in chunks), key=lambda ref: (ref["block"], ref["run"]))
    life = {"issued": 1_760_000_000, "expires": 1_760_100_000, "sequence": 1, "supersedes": None}
    told = fields | {"chunks": refs, "life": life, "publisher": str(key().peer_id), "extensions": []}
    return manifest_of(told), result["reused"]


@pytest.mark.parametrize("family", ["llama", "deepseek-v3.2"])
def test_what_is_signed_is_the_same_to_the_bit(tmp_path: Path, family: str) -> None:
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", family), seen.append)
    base, none = publish(tmp_path / "chunks", seen, made, TEXT)
    alone, zero = publish(tmp_path / "other", seen, made, CHANGED)
    again, reused = publish(tmp_path / "chunks", seen, made, CHANGED, base)
    assert (none, zero) == (0, 0)
    assert reused >= 4 * BLOCK and reused % BLOCK == 0
    assert again == alone
    computed = [m for m in seen if m["event"] == "prefill"]
    assert [m["tokens"] for m in computed][-1] == alone.prefix.tokens


def test_the_last_block_is_computed_whatever_is_there(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", "llama"), seen.append)
    base, _ = publish(tmp_path / "chunks", seen, made, TEXT)
    ids = made.loaded.tokenize(TEXT)
    short = next(n for n in range(len(TEXT), 0, -1) if made.loaded.tokenize(TEXT[:n]) == ids[: 4 * BLOCK])
    alone, _ = publish(tmp_path / "other", seen, made, TEXT[:short])
    again, reused = publish(tmp_path / "chunks", seen, made, TEXT[:short], base)
    assert reused == 3 * BLOCK and again == alone


def test_chunks_that_are_gone_or_damaged_are_computed(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", "llama"), seen.append)
    base, _ = publish(tmp_path / "chunks", seen, made, TEXT)
    alone, _ = publish(tmp_path / "other", seen, made, CHANGED)
    again, reused = publish(tmp_path / "empty", seen, made, CHANGED, base)
    assert reused == 0 and again == alone


@pytest.mark.parametrize("family", ["gemma3-24", "lfm2"])
def test_windows_and_states_are_not_reused(tmp_path: Path, family: str) -> None:
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", family), seen.append)
    base, _ = publish(tmp_path / "chunks", seen, made, TEXT)
    assert publish(tmp_path / "chunks", seen, made, CHANGED, base)[1] == 0


def test_what_was_made_in_another_way_is_not_reused(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", "llama"), seen.append)
    base, _ = publish(tmp_path / "chunks", seen, made, TEXT)
    ids = made.loaded.tokenize(TEXT)
    blocks = Blocks(len(ids), BLOCK)
    assert shared_tokens(made.loaded, base, ids, blocks) == (len(ids) - 1) // BLOCK * BLOCK
    replace = msgspec.structs.replace
    others = [
        replace(base, numerics=replace(base.numerics, claim="tolerance")),
        replace(base, numerics=replace(base.numerics, isa="another")),
        replace(base, layout=replace(base.layout, rope="{}")),
        replace(base, layout=replace(base.layout, dtype="float16")),
        replace(base, prefix=replace(base.prefix, block_tokens=2 * BLOCK)),
        replace(base, model=replace(base.model, weights=bytes(32))),
    ]
    assert [shared_tokens(made.loaded, other, ids, blocks) for other in others] == [0] * len(others)
    assert shared_tokens(made.loaded, base, [*ids[:40], 7, *ids[41:]], blocks) == BLOCK
    assert shared_tokens(made.loaded, base, ids, Blocks(len(ids), BLOCK, [40])) == 0
