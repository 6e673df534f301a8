"""What reading a manifest costs grows as the manifest does, whatever a stranger puts into it.

Counted are lines of Python, which are the same on every machine: of a manifest eight times as long eight times as many,
and a little.  A walk over all blocks for every group, or over all layers for every chunk, takes 64 times as many.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from kvswap.artifact.blocks import Blocks
from kvswap.artifact.chain import token_sequence_of
from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.layout import expected_chunks, needed_files, plan_groups, resumable, work_units
from kvswap.artifact.manifest import ChunkRef, Divergence, Life, Manifest, Numerics, Probe, layout_of, version_of
from kvswap.artifact.specs import KEY, VALUE, LayerGroup, LayerSpec, TensorSpec
from kvswap.core.errors import MalformedManifest
from kvswap.core.ids import Cid
from tests.counting import counting
from tests.support import identity, key

BLOCK = 8
FULL = LayerSpec.key_value("full", 1, 8, 8)
NOTHING_HELD = LayerSpec.key_value("sliding", 1, 8, 8, 1)
STATE = LayerSpec("state", (TensorSpec("s", "checkpoint", (8, 8)),))
MANY = LayerSpec("state", tuple(TensorSpec(f"s{i}", "checkpoint", (8, 8)) for i in range(8)))


def manifest_bytes(
    specs: list[LayerSpec], tokens: int, checkpoints: list[int], groups: list[LayerGroup] | None = None, codec: str = ""
) -> bytes:
    """The payload of a manifest that is right in itself, of chunks that nobody has."""
    groups = plan_groups(specs, "bfloat16", BLOCK) if groups is None else groups
    layout = layout_of("bfloat16", "{}", specs, groups, checkpoints)
    model, digest = identity(), bytes(32)
    ids = list(range(tokens))
    chunks = [
        ChunkRef(block, group, codec or "raw", bytes(Cid.of(b"%d %d" % (block, group))), length, digest, length)
        for block, group, length in expected_chunks(layout, Blocks(tokens, BLOCK, checkpoints))
    ]
    made = Manifest(
        version=version_of(layout),
        model=model,
        prefix=token_sequence_of(model.digest, ids, BLOCK, None, checkpoints),
        layout=layout,
        numerics=Numerics("blocks", "sdpa", "bfloat16", "2.0", "5.0", "cpu", "AVX2", 2, "bitwise"),
        tensors=[tuple(digest for _ in spec.tensors) for spec in specs],
        chunks=chunks,
        probe=Probe([1], [2], digest),
        life=Life(1_700_000_000, 1_700_000_100, 1),
        publisher=str(key().peer_id),
        divergence=Divergence(4, 4, 4, 0) if codec else None,
    )
    return made.encode()


def each_alone(specs: list[LayerSpec]) -> list[LayerGroup]:
    """Every tensor of every layer is a group."""
    return [LayerGroup((i,), (t.name,)) for i, spec in enumerate(specs) for t in spec.tensors]


def states(n: int) -> bytes:
    """Many groups of states, many blocks without any of their chunks."""
    specs = [MANY] * (n // 8)
    return manifest_bytes(specs, n * BLOCK, [n * BLOCK], each_alone(specs))


def windows(n: int) -> bytes:
    """Many layers that hold nothing at all, each a group, many blocks."""
    specs = [NOTHING_HELD] * (n // 2) + [FULL]
    return manifest_bytes(specs, n * BLOCK, [], [LayerGroup((i,), (KEY, VALUE)) for i in range(len(specs))])


def lossy(n: int) -> bytes:
    """One group of many layers, many chunks, of a codec that is asked whether they are states."""
    return manifest_bytes([FULL] * (n // 2), n * BLOCK, [], codec="int8")


def cuts(n: int) -> bytes:
    """Checkpoints nearly everywhere, many of them within blocks, each block of another length than the one before."""
    points = sorted({1 + i * (BLOCK + 1) for i in range(n // 4)} | {n * BLOCK})
    return manifest_bytes([STATE, FULL], n * BLOCK, [p for p in points if p <= n * BLOCK])


def checkpoints(n: int) -> bytes:
    """A checkpoint at every block."""
    return manifest_bytes([STATE, FULL], n * BLOCK, [(i + 1) * BLOCK for i in range(n)])


def overlapping(n: int) -> bytes:
    """Every layer in every group, which is no partition: n groups of n layers."""
    return manifest_bytes([FULL] * n, BLOCK, [], [LayerGroup(tuple(range(n)), (KEY, VALUE)) for _ in range(n)])


def read(payload: bytes) -> None:
    try:
        manifest = parse_manifest(payload)
    except MalformedManifest:
        return
    needed_files(manifest)
    needed_files(manifest, resumable(manifest, manifest.prefix.tokens - 1) or None)
    work_units(manifest)
    manifest.to_json()
    _ = manifest.raw_bytes, manifest.codecs


def lines(payload: bytes) -> int:
    """How many lines reading a payload runs."""
    with counting() as counted:
        read(payload)
    return counted.lines


@pytest.mark.parametrize("hostile", [states, windows, lossy, cuts, checkpoints, overlapping])
def test_eight_times_the_manifest_is_eight_times_the_work(hostile: Callable[[int], bytes]) -> None:
    small, large = hostile(64), hostile(512)
    first, second = lines(small), lines(large)
    assert second / first < 10, (first, second)


def test_the_files_of_a_manifest_are_made_once() -> None:
    """Whoever takes them one by one, of a hundred thousand, would else make a hundred thousand lists of all."""
    manifest = parse_manifest(checkpoints(8))
    assert manifest.files is manifest.files and len(manifest.files) == 16


def test_whether_a_checkpoint_is_one_is_not_searched_for_every_group() -> None:
    """512 layers of 4 states each, every one a group, and 20,000 checkpoints, before the first chunk is looked at."""
    spec = LayerSpec("state", tuple(TensorSpec(f"s{i}", "checkpoint", (8, 8)) for i in range(4)))
    groups = each_alone([spec] * 512)

    def seconds(count: int) -> float:
        points = [(i + 2) * BLOCK for i in range(count)]
        shape, blocks = layout_of("bfloat16", "{}", [spec] * 512, groups, points), Blocks(points[-1], BLOCK, points)
        assert shape.group_tensors(0) and shape.checkpoint_set
        began = time.process_time()
        assert next(expected_chunks(shape, blocks))
        return time.process_time() - began

    assert min(seconds(20_000) for _ in range(3)) < 20 * min(seconds(1) for _ in range(3)) + 0.02


if __name__ == "__main__":  # at the caps: python -m tests.artifact.test_linear_time
    for number, made in ((2_048, states), (1_000, windows), (1_000, lossy), (4_000, cuts), (40_000, checkpoints)):
        whole = made(number)
        began = time.perf_counter()
        read(whole)
        print(f"{made.__name__}: {len(whole):,} bytes, {time.perf_counter() - began:.2f} s")
