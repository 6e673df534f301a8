"""Lies about caches of every kind of layer: whole artifacts, well signed, in which chunks are of something else.

A `KindScene` is an honest artifact of a tiny model with a checkpoint at every block, as its parts: the tensors of each
chunk.  An attack changes parts; `signed` makes an artifact of them whose digests and fingerprint are the lie's own.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from msgspec.structs import replace

from kvswap.artifact import dsse, layout
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import FileRef, Manifest
from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.trust import Statement, read_statement
from kvswap.trust.levels import Level, LevelResult
from tests.attacks.kit import MALLORY
from tests.worker.honest import BLOCK, OTHER, Shelf

TOKENS = 4 * BLOCK + 40
KINDS = {
    "dense": "llama",
    "ALiBi": "falcon-alibi",
    "sliding": "gemma3-24",
    "shared layers": "gemma4-e",
    "delta net": "qwen3.5",
    "Mamba 2": "granite4-h",
    "short convolution": "lfm2",
    "K/V and state": "falcon-h1",
    "latent": "deepseek-v3",
    "latent and index": "deepseek-v3.2",
}

Parts = dict[tuple[int, int], list[torch.Tensor]]
"""The tensors of each chunk, by (block, group)."""


@dataclass
class KindScene:
    """A tiny model, an honest artifact of it, and the tokens of another text of the same length."""

    loaded: Any
    text: str
    ids: list[int]
    other: list[int]
    manifest: Manifest
    noise: Any

    @classmethod
    def of(cls, shelf: Shelf, family: str, tokens: int = TOKENS) -> KindScene:
        made = shelf.artifact(family, tokens)
        loaded = shelf.jobs(family).loaded
        ids = list(loaded.tokenize(made.text))
        other = list(loaded.tokenize(OTHER))[: len(ids)]
        manifest = made.manifest
        if manifest.layout.has_states:
            every = [*range(BLOCK, len(ids), BLOCK), len(ids)]
            manifest = replace(manifest, layout=replace(manifest.layout, checkpoints=every))
        return cls(loaded, made.text, ids, other, manifest, shelf.noise(family))

    @property
    def honest(self) -> Parts:
        return self.parts(self.ids)

    def parts(self, ids: list[int], loaded: Any = None) -> Parts:
        """Compute the chunks of these ids."""
        from kvswap.model.cache import capture_block, new_cache
        from kvswap.model.prefill import canonical_prefill

        loaded, shape = loaded or self.loaded, self.manifest.layout
        wanted = {(block, run) for block, run, _ in layout.expected_chunks(shape, Blocks(len(ids), BLOCK))}
        cache, out = new_cache(loaded.model.config, len(ids)), {}
        for block in canonical_prefill(loaded, cache, ids, BLOCK):
            for run in range(len(shape.groups)):
                if (block.index, run) in wanted:
                    out[block.index, run] = capture_block(cache, shape, run, block.start, block.stop)
        return out

    def resumed_with(self) -> list[int]:
        """The groups that only somebody who resumes at a place needs: states, else windows, else all."""
        shape = self.manifest.layout
        runs = range(len(shape.groups))
        states = [run for run in runs if shape.is_state(run)]
        windows = [run for run in runs if shape.layers[shape.groups[run].layers[0]].window is not None]
        return states or windows or list(runs)


Attack = Callable[[KindScene], Parts]
ATTACKS: dict[str, Attack] = {}


def attack(name: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS[name] = function
        return function

    return add


@attack("swapped span")
def swapped_span(scene: KindScene) -> Parts:
    """A block in the middle is of another text, the states are right."""
    out, other = scene.honest, scene.parts(scene.other)
    shape = scene.manifest.layout
    return out | {at: part for at, part in other.items() if at[0] == 1 and not shape.is_state(at[1])}


@attack("swapped history")
def swapped_history(scene: KindScene) -> Parts:
    """From the third block on everything was computed after another beginning."""
    after = scene.parts(scene.other[: 2 * BLOCK] + scene.ids[2 * BLOCK :])
    return scene.honest | {at: part for at, part in after.items() if at[0] >= 2}


@attack("nudged at the end")
def nudged(scene: KindScene) -> Parts:
    """What a reader of the end resumes with is a twentieth too large."""
    out, last = scene.honest, len(Blocks(TOKENS, BLOCK)) - 1
    run = scene.resumed_with()[-1]
    out[last, run] = [part * 1.05 for part in out[last, run]]
    return out


@attack("wrong at an inner checkpoint")
def inner(scene: KindScene) -> Parts:
    """What a reader resumes with after two blocks is turned around; the end is right."""
    out = scene.honest
    run = scene.resumed_with()[-1]
    out[1, run] = [-part for part in out[1, run]]
    return out


@attack("zeroed tensor")
def zeroed(scene: KindScene) -> Parts:
    """One tensor of one layer holds zeros everywhere."""
    out = scene.honest
    run = scene.resumed_with()[-1]
    for block, group in out:
        if group == run:
            out[block, group][-1] = torch.zeros_like(out[block, group][-1])
    return out


@attack("reordered checkpoints")
def reordered(scene: KindScene) -> Parts:
    """What a reader resumes with after two blocks and after three is exchanged."""
    out = scene.honest
    for run in scene.resumed_with():
        out[1, run], out[2, run] = out[2, run], out[1, run]
    return out


@attack("other text")
def other_text(scene: KindScene) -> Parts:
    return scene.parts(scene.other)


@attack("slightly other model")
def slightly_other(scene: KindScene) -> Parts:
    """The weights of every layer but the first are 2% off."""
    loaded = copy.copy(scene.loaded)
    loaded.model = copy.deepcopy(scene.loaded.model)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        decoder = loaded.model.get_decoder()
        layers = next(part for part in decoder.modules() if isinstance(part, torch.nn.ModuleList))
        for layer in layers[1:]:
            for weight in layer.parameters():
                weight.mul_(1 + 0.02 * torch.randn(weight.shape, generator=random))
    return scene.parts(scene.ids, loaded)


def signed(scene: KindScene, parts: Parts) -> tuple[Statement, dict[Cid, bytes]]:
    """An artifact of these parts by somebody whose signature is valid, and its files."""
    from kvswap.artifact.assembly import load
    from kvswap.artifact.fingerprint import fingerprint
    from kvswap.artifact.tensors import as_part, digest_layer, encode_chunk

    shape, chunks, refs = scene.manifest.layout, {}, []
    for (block, run), tensors in sorted(parts.items()):
        words = [as_part(tensor.contiguous()) for tensor in tensors]
        chunk = encode_chunk(words, shape.group_dtype(run), "planes", block, run)
        refs.append(chunk.ref)
        chunks[chunk.ref.id] = chunk.wire
    manifest = replace(scene.manifest, chunks=refs, publisher=str(MALLORY.peer_id))
    held = load(manifest, chunks.__getitem__)
    mark = fingerprint(held)
    chunks[Cid.of(mark)] = mark
    manifest = replace(
        manifest,
        tensors=[digest_layer(layer) for layer in held],
        fingerprint=FileRef(bytes(Cid.of(mark)), len(mark)),
    )
    return read_statement(dsse.seal(manifest.encode(), manifest.publisher, MALLORY.sign)), chunks


def climbed(
    scene: KindScene,
    parts: Parts,
    levels: list[int],
    *,
    samples: int = 128,
    seed: bytes = bytes(32),
    without: tuple[int, int] | None = None,
) -> dict[str, LevelResult]:
    """What a reader that has the text finds, by level; 128 samples are all intervals.

    `without`: the (block, group) of a chunk that is not here.
    """
    from kvswap.worker.inbox import Inbox, JobContext, JobPipe
    from kvswap.worker.messages import VerifyJob
    from kvswap.worker.verifying import Checks

    statement, chunks = signed(scene, parts)
    lacking = {ref.id for ref in statement.manifest.chunks if (ref.block, ref.run) == without}

    def source(cid: Cid) -> bytes:
        if cid in lacking:
            raise NotFound(f"{cid} is not here")
        return chunks[cid]

    context = JobContext(scene.loaded, OrderedDict(), JobPipe(Inbox(), lambda event: None, lambda: None))
    job = VerifyJob(
        envelope=statement.envelope,
        chunks="",  # they are in memory
        levels=levels,
        samples=samples,
        seed=seed,
        text=scene.text,
        noise=scene.noise,
    )
    checks = Checks(context, statement, source, job)
    return {f"V{int(step.level)}": step for step in checks.run([Level(level) for level in levels])}
