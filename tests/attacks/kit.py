"""Artifacts that are wrong and well signed: what somebody can offer whose signature is valid.

Every attack takes a `Scene` - a model, a text's tokens, their right cache - and gives tensors (or tokens)
of a lie about it.  `forge` makes a whole artifact of that: chunks, digests, probe and fingerprint are
those of the lie, so nothing but the model itself can tell.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from msgspec.structs import replace

from kvswap.artifact import chain, dsse, layout
from kvswap.artifact.manifest import (
    ChunkRef,
    Divergence,
    DocumentRef,
    FileRef,
    Life,
    Manifest,
    Probe,
    TokenSequence,
    layout_of,
)
from kvswap.artifact.specs import LayerSpec
from kvswap.artifact.tensors import LayerTensors
from kvswap.core.errors import Incompatible
from kvswap.core.ids import Cid
from kvswap.trust import Key, read_statement
from tests.support import Ingested, key

NOW = 1_700_000_000
MALLORY = key(66)


def computed(loaded: Any, ids: list[int], block_tokens: int) -> list[LayerTensors]:
    """The cache of these ids on the canonical schedule, as tensors of its own."""
    from kvswap.model.cache import held_tensors, layer_specs
    from kvswap.model.prefill import prefill

    cache = prefill(loaded, ids, block_tokens)
    return _own(held_tensors(cache, layer_specs(cache), len(ids)))


def _own(tensors: list[LayerTensors]) -> list[LayerTensors]:
    return [LayerTensors(h.spec, tuple(t.clone() for t in h.tensors), h.first, h.tokens) for h in tensors]


@dataclass
class Scene:
    """A text, its right cache, and another text of the same length."""

    loaded: Any
    text: str
    ids: list[int]
    other: list[int]
    block_tokens: int

    @cached_property
    def right(self) -> list[LayerTensors]:
        return self.compute(self.ids)

    @cached_property
    def elsewhere(self) -> list[LayerTensors]:
        return self.compute(self.other)

    def compute(self, ids: list[int], loaded: Any = None) -> list[LayerTensors]:
        return computed(loaded or self.loaded, ids, self.block_tokens)

    def copy(self) -> list[LayerTensors]:
        return _own(self.right)

    def pasted(self, start: int, stop: int, source: list[LayerTensors], first_layer: int = 0) -> list[LayerTensors]:
        """The right cache with tokens [start, stop) of another one, from a layer on."""
        out = self.copy()
        for held, other in list(zip(out, source, strict=True))[first_layer:]:
            held.k[:, start:stop] = other.k[:, start:stop]
            held.v[:, start:stop] = other.v[:, start:stop]
        return out

    def random(self, seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)


Tensors = list[LayerTensors]
ATTACKS: dict[str, Callable[[Scene], Tensors]] = {}


def attack(name: str) -> Callable[[Callable[[Scene], Tensors]], Callable[[Scene], Tensors]]:
    def add(function: Callable[[Scene], Tensors]) -> Callable[[Scene], Tensors]:
        ATTACKS[name] = function
        return function

    return add


@attack("swapped span")
def swapped_span(scene: Scene) -> Tensors:
    """A quarter of the cache is of another text."""
    tokens = len(scene.ids)
    return scene.pasted(tokens // 4, tokens // 2, scene.elsewhere)


@attack("swapped history")
def swapped_history(scene: Scene) -> Tensors:
    """The second half was computed after another first half: its layer 0 is right."""
    half = len(scene.ids) // 2
    return scene.pasted(half, len(scene.ids), scene.compute(scene.other[:half] + scene.ids[half:]))


@attack("foreign context, 64 tokens")
def foreign_context(scene: Scene) -> Tensors:
    """64 tokens that were computed in another text, as chunk-reuse systems paste them (HijackKV)."""
    start = len(scene.ids) // 2
    stop = start + 64
    return scene.pasted(start, stop, scene.compute(scene.other[:start] + scene.ids[start:stop] + scene.other[stop:]))


@attack("one poisoned position")
def poisoned(scene: Scene) -> Tensors:
    """Above layer 0 one position holds another text's keys and values."""
    at = 3 * len(scene.ids) // 5
    return scene.pasted(at, at + 1, scene.elsewhere, first_layer=1)


def _perturbed(scene: Scene, strength: float) -> Tensors:
    out, random = scene.copy(), scene.random()
    for held in out[1:]:
        noise = torch.randn(held.k.shape, generator=random)
        held.k.copy_((held.k.float() * (1 + strength * noise)).to(held.k.dtype))
    return out


@attack("perturbed keys, 10%")
def perturbed_strongly(scene: Scene) -> Tensors:
    return _perturbed(scene, 0.10)


@attack("perturbed keys, 1%")
def perturbed(scene: Scene) -> Tensors:
    """As much as rounding does: not to be told from another machine."""
    return _perturbed(scene, 0.01)


def flipped(scene: Scene, bit: int) -> Tensors:
    """One bit place of one key in 64, in a layer in the middle."""
    out = scene.copy()
    held = out[len(out) // 2]
    size = held.k.element_size()
    words = held.k.view({2: torch.int16, 4: torch.int32}[size])
    place = bit + 8 * (size - 2)  # the upper 16 bits of a float32 are its bfloat16
    value = 1 << place if place < 8 * size - 1 else -(1 << place)
    flat = words.reshape(-1)
    flat[::64] ^= value
    words.copy_(flat.reshape(words.shape))
    return out


for _bit in range(16):
    ATTACKS[f"bit {_bit} flipped"] = lambda scene, bit=_bit: flipped(scene, bit)  # type: ignore[misc]


@attack("other weights, 2% on one layer")
def other_weights(scene: Scene) -> Tensors:
    """A fine-tuned or damaged model: one decoder layer's weights are 2% off."""
    loaded = copy.copy(scene.loaded)
    loaded.model = copy.deepcopy(scene.loaded.model)
    layers = loaded.model.get_decoder().layers
    random = scene.random()
    with torch.no_grad():
        for parameter in layers[len(layers) // 3].parameters():
            noise = torch.randn(parameter.shape, generator=random)
            parameter.copy_((parameter.float() * (1 + 0.02 * noise)).to(parameter.dtype))
    return scene.compute(scene.ids, loaded)


@attack("int8 as exact")
def int8_as_exact(scene: Scene) -> Tensors:
    """Rounded to eight bits a channel and published as exact, which saves half the upload."""
    out = scene.copy()
    for held in out:
        for tensor in (held.k, held.v):
            scale = tensor.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            tensor.copy_(((tensor.float() / scale).round() * scale).to(tensor.dtype))
    return out


@attack("shifted positions")
def shifted(scene: Scene) -> Tensors:
    """Every token's keys and values one position late."""
    out = scene.copy()
    for held in out:
        held.k.copy_(held.k.roll(1, 1))
        held.v.copy_(held.v.roll(1, 1))
    return out


@attack("wrong RoPE")
def wrong_rope(scene: Scene) -> Tensors:
    """Computed with another base of the rotation."""
    loaded = copy.copy(scene.loaded)
    loaded.model = copy.deepcopy(scene.loaded.model)
    for module in loaded.model.modules():
        if hasattr(module, "inv_freq"):
            module.inv_freq = module.inv_freq * 0.9
    return scene.compute(scene.ids, loaded)


@attack("reordered blocks")
def reordered(scene: Scene) -> Tensors:
    """The first two blocks in each other's place."""
    out, size = scene.copy(), scene.block_tokens
    for held in out:
        for tensor in (held.k, held.v):
            first = tensor[:, :size].clone()
            tensor[:, :size] = tensor[:, size : 2 * size]
            tensor[:, size : 2 * size] = first
    return out


@attack("layers exchanged")
def layers_exchanged(scene: Scene) -> Tensors:
    """Two layers of one shape in each other's place: the layout is identical."""
    out = scene.copy()
    out[1], out[2] = out[2], out[1]
    return out


@attack("heads exchanged")
def heads_exchanged(scene: Scene) -> Tensors:
    """The key heads of every layer in another order: the layout is identical."""
    out = scene.copy()
    for held in out:
        held.k.copy_(held.k.flip(0))
    return out


@attack("keys for values")
def keys_for_values(scene: Scene) -> Tensors:
    """Above layer 0 keys and values exchanged: the layout is identical."""
    out = scene.copy()
    for held in out[1:]:
        held.tensors = (held.v, held.k)
    return out


@attack("not a number")
def not_a_number(scene: Scene) -> Tensors:
    out = scene.copy()
    out[-1].v[0, 5, 3] = float("nan")
    return out


# -- what a liar can say besides ---------------------------------------------------------------------


def _windows(manifest: Manifest) -> Manifest:
    """Every layer is said to keep a window; the chunks hold no more than that."""
    layers = [replace(spec, kind="sliding", window=24) for spec in manifest.layout.layers]
    return replace(manifest, layout=replace(manifest.layout, layers=layers))


def _numerics(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, numerics=replace(manifest.numerics, **changes))


def _prefix(**changes: Any) -> Callable[[Manifest], Manifest]:
    return lambda manifest: replace(manifest, prefix=replace(manifest.prefix, **changes))


EXACTNESS_CLAIMS: dict[str, Callable[[Manifest], Manifest]] = {
    "inexact": lambda manifest: replace(manifest, divergence=Divergence(steps=32, equal=32, first=32, kl=0)),
    "no probe": lambda manifest: replace(manifest, probe=replace(manifest.probe, tokens=[])),
    "private": lambda manifest: replace(manifest, document=None),
    "another document": lambda manifest: replace(manifest, document=replace(manifest.document, sha256=bytes(32))),
    "tolerance": _numerics(claim="tolerance"),
    "another processor": _numerics(isa="AVX9"),
    "another device": _numerics(device="cuda:NVIDIA H100"),
    "another torch": _numerics(torch="1.0"),
    "another transformers": _numerics(transformers="1.0"),
    "another schedule": _numerics(schedule="vllm"),
    "another attention": _numerics(attention="eager"),
    "another compute dtype": _numerics(compute_dtype="float64"),
    "no special tokens": _prefix(special_tokens=False),
    "a template": _prefix(template="chat"),
    "windows": _windows,
    "no fingerprint": lambda manifest: replace(manifest, fingerprint=None),
    "another rope": lambda manifest: replace(manifest, layout=replace(manifest.layout, rope="{}")),
    "another label": lambda manifest: replace(manifest, model=replace(manifest.model, label="another")),
}


def _foreign_chain(scene: Scene, manifest: Manifest) -> Manifest:
    """The digest is of the document's tokens, the chain of another text's: its beginning gets this one's cache."""
    chained = chain.chain_digests(scene.loaded.identity.digest, scene.other, scene.block_tokens)
    return _prefix(chain=chained[: len(manifest.prefix.chain)])(manifest)


def _last_link(scene: Scene, manifest: Manifest) -> Manifest:
    return _prefix(chain=[*manifest.prefix.chain[:-1], bytes(32)])(manifest)


SIGNED: dict[str, Callable[[Scene, Manifest], Manifest]] = {  # lies about the tokens beside a cache that is right
    "chain of another text": _foreign_chain,
    "another last link": _last_link,
}
IDLE = {"no probe", "tolerance", "no fingerprint", "another rope", "another label"}  # claims that no check depends on


def forge(
    scene: Scene,
    tensors: Tensors,
    *,
    ids: list[int] | None = None,
    signer: Key = MALLORY,
    claim: str | None = None,
    signed: str | None = None,
) -> Ingested:
    """An artifact of these tensors that says it is of the scene's text: everything that can be signed is.

    `claim`: one of `EXACTNESS_CLAIMS`, said besides; `signed`: one of `SIGNED`.
    """
    from kvswap.artifact.assembly import load
    from kvswap.artifact.fingerprint import fingerprint
    from kvswap.artifact.tensors import as_part, digest_layer, encode_chunk
    from kvswap.model.cache import build_cache, layer_specs, new_cache
    from kvswap.model.prefill import PROBE_STEPS, forward, greedy

    loaded, ids = scene.loaded, ids or scene.ids
    small = new_cache(loaded.model.config, 8)
    forward(loaded, small, ids[:1], 0)
    specs = layer_specs(small)
    if [(h.k.shape[0], h.k.shape[2], h.v.shape[2]) for h in tensors] != [(s.heads, s.k_dim, s.v_dim) for s in specs]:
        specs = [
            LayerSpec.key_value("full", h.k.shape[0], h.k.shape[2], h.v.shape[2]) for h in tensors
        ]  # of no such model
    groups = layout.plan_groups(specs, loaded.dtype, scene.block_tokens)
    question = loaded.tokenize_continuation("\n\nIn summary,")
    roomy = [
        LayerTensors.key_value(torch.cat([h.k, h.k[:, :16]], 1), torch.cat([h.v, h.v[:, :16]], 1), h.first, h.tokens)
        for h in tensors
    ]
    try:
        cache = build_cache(loaded.model.config, roomy, len(ids), "cpu")
        made = greedy(loaded, cache, len(ids), question, PROBE_STEPS)
        probe = Probe(question=question, tokens=made.ids, logits=bytes.fromhex(made.logits_digest[7:]))
    except (Incompatible, RuntimeError):  # of what is not finite, or does not fit: a liar signs what it likes
        probe = Probe(question=question, tokens=[0] * PROBE_STEPS, logits=bytes(32))
    mark = fingerprint(tensors)
    manifest = Manifest(
        version=1,
        model=loaded.identity,
        document=DocumentRef(hashlib.sha256(scene.text.encode()).digest(), len(scene.text.encode()), "text/plain"),
        prefix=TokenSequence(
            tokens=len(ids),
            token_digest=chain.token_digest(ids),
            block_tokens=scene.block_tokens,
            chain=chain.chain_digests(loaded.identity.digest, ids, scene.block_tokens),
            start=0,
            special_tokens=True,
        ),
        layout=layout_of(loaded.dtype, loaded.rope(), list(specs), groups),
        numerics=loaded.numerics(),
        tensors=[],
        chunks=[],
        probe=probe,
        life=Life(issued=NOW, expires=NOW + 10**6, sequence=1),
        publisher=str(signer.peer_id),
        fingerprint=FileRef(bytes(Cid.of(mark)), len(mark)),
    )
    if claim is not None:
        manifest = EXACTNESS_CLAIMS[claim](manifest)
    if signed is not None:
        manifest = SIGNED[signed](scene, manifest)
    refs: list[ChunkRef] = []
    chunks: dict[Cid, bytes] = {Cid.of(mark): mark}
    for block in range(layout.block_count(len(ids), scene.block_tokens)):
        start, stop = layout.block_span(len(ids), scene.block_tokens, block)
        for run, members in enumerate(group.layers for group in groups):
            first, last = layout.stored_span(manifest.layout.layers[members[0]], start, stop)
            parts = [as_part(t[:, first:last].contiguous()) for i in members for t in (tensors[i].k, tensors[i].v)]
            chunk = encode_chunk(parts, loaded.dtype, "planes" if manifest.lossless else "int8", block, run)
            refs.append(chunk.ref)
            chunks[chunk.ref.id] = chunk.wire
    manifest = replace(manifest, chunks=refs)
    held = load(
        manifest, chunks.__getitem__
    )  # what a reader gets: of an inexact codec, and of windows, not what went in
    manifest = replace(manifest, tensors=[digest_layer(layer) for layer in held])
    envelope = dsse.seal(manifest.encode(), str(signer.peer_id), signer.sign)
    return Ingested(read_statement(envelope), chunks, [])


def run_checks(
    made: Ingested,
    scene: Scene,
    levels: list[int],
    noise: Any,
    *,
    seed: bytes = bytes(32),
    samples: int = 32,
    text: str | None = "",
) -> Any:
    """These steps of the model process on an artifact in memory; returns (steps, fingerprint).

    `text`: None for a reader that has only the digest; empty for the scene's.
    """
    from collections import OrderedDict

    from kvswap.trust.levels import Level
    from kvswap.worker.inbox import Inbox, JobContext, JobPipe
    from kvswap.worker.messages import VerifyJob
    from kvswap.worker.verifying import Checks

    context = JobContext(scene.loaded, OrderedDict(), JobPipe(Inbox(), lambda event: None, lambda: None))
    job = VerifyJob(
        envelope=b"",  # what is checked is in memory
        chunks="",
        levels=levels,
        samples=samples,
        seed=seed,
        text=scene.text if text == "" else text,
        noise=noise.record if noise is not None else None,
    )
    checks = Checks(context, made.statement, made.chunks.__getitem__, job)
    return checks.run([Level(level) for level in levels]), checks.fingerprint()
