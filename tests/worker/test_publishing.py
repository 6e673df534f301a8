"""Publishing in the model process: checkpoints, cuts, and what a reader makes of them, through the jobs themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvswap.artifact import dsse, layout
from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import UsageError
from kvswap.core.ids import Cid
from kvswap.model.prefill import canonical_prefill, greedy
from kvswap.model.question import question_text
from kvswap.store.files import ChunkFiles
from tests.families import build
from tests.support import DOCUMENT, key, manifest_of
from tests.worker.test_jobs import jobs

BLOCK, STEPS = 32, 6
TEXT = DOCUMENT.read_text()[:900]
QUESTION = "What?"


def published(directory: Path, seen: list[dict[str, Any]], made: Any, *checkpoints: int) -> Manifest:
    seen.clear()
    result = made.run(
        {"job": "publish", "text": TEXT, "block_tokens": BLOCK, "codec": "planes", "truncate": False,
         "checkpoints": list(checkpoints)}
    )  # fmt: skip
    files = ChunkFiles(directory)
    chunks = [m for m in seen if m["event"] == "chunk"]
    for message in chunks:
        files.write(Cid.of(message["data"]), message["data"])
    fields = {name: result[name] for name in ("model", "prefix", "layout", "numerics", "tensors", "probe")}
    refs = sorted((m["ref"] for m in chunks), key=lambda ref: (ref["block"], ref["run"]))
    life = {"issued": 1_760_000_000, "expires": 1_760_100_000, "sequence": 1, "supersedes": None}
    return manifest_of(fields | {"chunks": refs, "life": life, "publisher": str(key().peer_id), "extensions": []})


def digest_of(made: Any, ids: list[int], cuts: list[int]) -> str:
    """The answer of a cache that was prefilled with these cuts."""
    from kvswap.model.cache import new_cache

    loaded = made.loaded
    cache = new_cache(loaded.model.config, len(ids) + 64)
    for _ in canonical_prefill(loaded, cache, ids, BLOCK, cuts=cuts):
        pass
    following = loaded.tokenize_continuation(question_text(loaded.tokenizer, QUESTION))
    return greedy(loaded, cache, len(ids), following, STEPS).logits_digest


@pytest.mark.parametrize("family", ["lfm2", "qwen3.5", "falcon-h1", "deepseek-v3.2", "gemma3-24", "llama"])
def test_a_reader_goes_on_from_every_checkpoint_bit_for_bit(tmp_path: Path, family: str) -> None:
    """Whole, from the usual checkpoints, and from cuts within blocks; everywhere else it is refused."""
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", family), seen.append)
    ids = made.loaded.tokenize(TEXT)
    cuts = [BLOCK + 5, 3 * BLOCK - 1]
    manifest = published(tmp_path / "chunks", seen, made, *cuts, 4 * BLOCK)
    states = manifest.layout.has_states
    assert manifest.version == (1 if not manifest.layout.checkpoints and family != "deepseek-v3.2" else 2)
    assert {*cuts, 4 * BLOCK, len(ids)} <= set(manifest.layout.checkpoints)
    assert len(manifest.prefix.chain) == len(manifest.blocks) == -(-len(ids) // BLOCK) + 2
    envelope = dsse.seal(manifest.encode(), manifest.publisher, key().sign)
    ask = {
        "job": "answer", "question": QUESTION, "steps": STEPS, "block_tokens": BLOCK, "ignore_eos": True,
        "envelope": envelope, "chunks": str(ChunkFiles(tmp_path / "chunks").directory),
    }  # fmt: skip
    whole = made.run(dict(ask))
    assert (whole["tokens"], whole["logits_digest"]) == (len(ids), digest_of(made, ids, cuts))
    for stop in manifest.layout.checkpoints[:-1]:
        got = made.run({**ask, "tokens": stop, "text": TEXT})
        own = [cut for cut in cuts if cut <= stop]
        assert got["logits_digest"] == digest_of(made, ids, [*own, stop]), f"from {stop}"
        assert got["computed"] == len(ids) - stop and layout.resumable(manifest, stop) == stop
    elsewhere = [BLOCK + 1, *([2 * BLOCK] if states and 2 * BLOCK not in manifest.layout.checkpoints else [])]
    for stop in elsewhere:
        with pytest.raises(UsageError, match="cannot resume"):
            made.run({**ask, "tokens": stop, "text": TEXT})


def test_a_document_without_cuts_says_nothing_of_checkpoints(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", "llama"), seen.append)
    plain = published(tmp_path / "chunks", seen, made)
    assert plain == published(tmp_path / "chunks", seen, made, 2 * BLOCK, 10**6)
    assert (plain.version, plain.layout.checkpoints) == (1, [])


def test_a_state_is_checked_before_it_is_used(tmp_path: Path) -> None:
    """A state that the publisher changed and signed: only recomputing finds it, and there it is found."""
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", "qwen3.5"), seen.append)
    manifest = published(tmp_path / "chunks", seen, made)
    noise = made.run({"job": "noise"})["noise"]
    honest = verified(made, manifest, tmp_path / "chunks", noise)
    assert {level: verdict for level, (verdict, _) in honest.items()} == {
        2: "passed", 3: "passed", 4: "passed", 5: "skipped", 7: "passed"
    }  # fmt: skip
    assert "state" in honest[5][1]
    changed = spoiled(manifest, tmp_path / "chunks")
    found = verified(made, changed, tmp_path / "chunks", noise)
    assert found[7][0] == "failed" and found[2][0] == found[3][0] == "passed", found


@pytest.mark.parametrize("family", ["qwen3.5", "gemma3-24"])
def test_what_is_held_before_the_end_is_computed_again_as_well(tmp_path: Path, family: str) -> None:
    """A state, or a window, of an earlier boundary: the cache at the end does not show it, and readers resume there."""
    seen: list[dict[str, Any]] = []
    made = jobs(build(tmp_path / "model", family), seen.append)
    manifest = published(tmp_path / "chunks", seen, made, 2 * BLOCK)
    noise = made.run({"job": "noise"})["noise"]
    assert verified(made, manifest, tmp_path / "chunks", noise)[7][0] == "passed"
    inner = next(i for i, ref in enumerate(manifest.chunks) if i not in layout.needed(manifest) and ref.block == 1)
    verdict, why = verified(made, negated(manifest, tmp_path / "chunks", inner), tmp_path / "chunks", noise)[7]
    assert verdict == "failed" and f"resume after {2 * BLOCK} tokens" in why


def negated(manifest: Manifest, directory: Path, at: int) -> Manifest:
    """The same artifact with one chunk's numbers turned around, signed as such."""
    import msgspec
    import numpy as np

    from kvswap.artifact.tensors import decode_chunk, encode_chunk
    from kvswap.codec.parts import WORD
    from kvswap.store.files import chunk_reader

    files = ChunkFiles(directory)
    shape, ref = manifest.layout, manifest.chunks[at]
    dtype, span = shape.group_dtype(ref.run), manifest.blocks.span(ref.block)
    parts = [np.empty(size, WORD[dtype]) for size in layout.part_shapes(shape, ref.run, *span)]
    decode_chunk(manifest, ref, chunk_reader(files.directory)(ref.id), parts, None, {})
    sign = np.array(1 << (8 * parts[0].itemsize - 1), parts[0].dtype)
    made = encode_chunk([part ^ sign for part in parts], dtype, "planes", ref.block, ref.run)
    files.write(made.ref.id, made.wire)
    chunks = list(manifest.chunks)
    chunks[at] = made.ref
    return msgspec.structs.replace(manifest, chunks=chunks)


def verified(made: Any, manifest: Manifest, chunks: Path, noise: Any) -> dict[int, tuple[str, str]]:
    envelope = dsse.seal(manifest.encode(), manifest.publisher, key().sign)
    request = {
        "envelope": envelope,
        "chunks": str(ChunkFiles(chunks).directory),
        "levels": [2, 3, 4, 5, 7],
        "samples": 8,
        "seed": bytes(32),
    }
    done = made.run({"job": "verify", **request, "text": TEXT, "noise": noise})
    return {row["level"]: (row["verdict"], row["why"]) for row in done["steps"]}


def spoiled(manifest: Manifest, directory: Path) -> Manifest:
    """The same artifact with the last state of one layer turned around, as a liar signs it."""
    import msgspec

    from kvswap.artifact.assembly import load
    from kvswap.artifact.tensors import as_part, digest_layer, encode_chunk
    from kvswap.store.files import chunk_reader

    files = ChunkFiles(directory)
    read = chunk_reader(files.directory)
    held = load(manifest, read)
    place = next(i for i, tensor in enumerate(held[0].spec.tensors) if tensor.name == "recurrent.0")
    held[0].tensors[place].neg_()
    shape, chunks = manifest.layout, list(manifest.chunks)
    group = next(g for g, members in enumerate(shape.members) if (0, place) in members)
    at = max(i for i, ref in enumerate(chunks) if ref.run == group)
    parts = [as_part(held[index].tensors[number]) for index, number in shape.members[group]]
    made = encode_chunk(parts, shape.group_dtype(group), "planes", chunks[at].block, group)
    files.write(made.ref.id, made.wire)
    chunks[at] = made.ref
    return msgspec.structs.replace(manifest, chunks=chunks, tensors=[digest_layer(one) for one in held])
