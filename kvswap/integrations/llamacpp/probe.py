"""What a server makes of fixed tokens: the one thing that tells how it computes.

Rope settings, adapters, overridden metadata, another processor and another release all change keys and values, and no
name, flag or build number says so.  So every server is given the same tokens when it starts, and what it saves of them
is compared with what the publisher's server made of them: the same to the bit, as near as other processors come, or
something else, whose caches are refused.

A *sketch* stands in for the values themselves, in some hundred bytes a layer: keys and values are projected with fixed
random signs onto `WIDTH` numbers each, which keeps distances about as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kvswap.artifact.manifest import EngineProbe
from kvswap.core.errors import Incompatible
from kvswap.integrations.llamacpp.building import LayerRows
from kvswap.integrations.llamacpp.mapping import GgufLayout, model_rows, parts_of
from kvswap.integrations.llamacpp.state import SlotFile

TOKENS = 256
WIDTH = 16


@dataclass(frozen=True, slots=True)
class Distances:
    """The distances between the sketches of two servers, relative to their size.

    `first`: the first layer's keys or values, whichever is greater; `keys`: of all layers the one whose keys are
    furthest apart; `mean`: all tensors.
    """

    first: float
    keys: float
    mean: float

    def __str__(self) -> str:
        return f"{self.first:.4f} in the first layer, {self.keys:.2f} in a layer's keys, {self.mean:.2f} on the mean"

    def within(self, most: Distances) -> bool:
        """Return True if none of them is greater than another's."""
        return self.first <= most.first and self.keys <= most.keys and self.mean <= most.mean


NOISE = Distances(first=0.0035, keys=0.13, mean=0.1)
"""The distances up to which two servers are taken for the same computation.

What differs by rounding adds up from layer to layer; another RoPE shows in keys, and in the first layer where it turns
with it.  Measured on Gemma 3 270M and SmolLM2, with instruction sets from SSE2 to AVX-512, two releases, and flash
attention on and off: at most 0.0029, 0.095 and 0.057.  SmolLM2 with a RoPE base of 1.01 times: first 0.0146;
Gemma of twice: keys 0.159, with half the scale 0.29.  A base of 1.1 times is within the noise there on another
processor, and not bitwise on the same.
"""

_LARGEST = 65_504.0  # of a float16


def probe_ids(vocabulary: int) -> list[int]:
    """Return the tokens that every server of a model of so many tokens is given."""
    return [(3 + 37 * index) % min(vocabulary, 256) for index in range(TOKENS)]


def probe_of(layout: GgufLayout, file: SlotFile, version: str) -> EngineProbe:
    """Return what a server made of the probe's tokens; `version` is what the server calls itself, for people.

    Raises `Incompatible` for a state of other tokens.
    """
    if len(file.ids) != TOKENS:
        raise Incompatible(f"the probe's state has {len(file.ids)} tokens, not {TOKENS}", field="probe")
    first = TOKENS - min(TOKENS, (layout.window or TOKENS + 1) - 1)
    hasher, sketch = blake3(layout.rope.encode()), []
    for layer, rows in enumerate(model_rows(layout, file, first, TOKENS)):
        hasher.update(rows.keys.tobytes())
        hasher.update(rows.values.tobytes())
        sketch += [_projected(values, layer, kind) for kind, values in enumerate(_floats(layout, layer, rows))]
    packed = np.clip(np.stack(sketch), -_LARGEST, _LARGEST).astype("<f2").tobytes()
    return EngineProbe(engine="llama.cpp", version=version[:256], digest=hasher.digest(), sketch=packed)


def _floats(layout: GgufLayout, layer: int, rows: LayerRows) -> list[npt.NDArray[np.float64]]:
    """Return keys and values of a layer as numbers, [head, token, dim]."""
    out = []
    for tensor, part in zip(layout.layers[layer].tensors, parts_of(layout, layer, rows), strict=True):
        dtype = tensor.dtype or layout.dtype
        if dtype == "q8_0":
            blocks = np.ascontiguousarray(part).reshape(*part.shape[:2], -1, 34)
            scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float64)
            numbers = blocks[..., 2:].view(np.int8) * scales
        elif dtype == "bfloat16":
            numbers = np.left_shift(part, 16, dtype=np.uint32).view(np.float32).astype(np.float64)
        else:
            numbers = np.ascontiguousarray(part).view("<f2").astype(np.float64)
        out.append(numbers)
    return out


def _projected(values: npt.NDArray[np.float64], layer: int, kind: int) -> npt.NDArray[np.float64]:
    flat = values.reshape(-1)
    bits = blake3(b"kvswap llama probe 1 %d %d" % (layer, kind)).digest(length=-(-len(flat) // 8))
    signs = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[: len(flat)].astype(np.float64) * 2 - 1
    mixed = np.zeros(-(-len(flat) // WIDTH) * WIDTH)
    mixed[: len(flat)] = flat * signs
    return np.asarray(mixed.reshape(-1, WIDTH).sum(axis=0))


def distances(one: EngineProbe, other: EngineProbe) -> Distances:
    """Return how far two probes are apart.

    All are infinite for probes of other shapes, and where one holds what is no number.
    """
    apart = Distances(float("inf"), float("inf"), float("inf"))
    if len(one.sketch) != len(other.sketch) or not one.sketch or len(one.sketch) % (4 * WIDTH):
        return apart
    a, b = (np.frombuffer(probe.sketch, "<f2").astype(np.float64).reshape(-1, WIDTH) for probe in (one, other))
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return apart
    size = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    each = np.linalg.norm(a - b, axis=1) / np.maximum(size, 1e-6)
    return Distances(float(each[:2].max()), float(each[::2].max()), float(each.mean()))


@dataclass(frozen=True, slots=True)
class Judgement:
    """The relation of a publisher's server to this one: `bitwise` the same, or within `tolerance`."""

    claim: str
    apart: Distances


def judge(theirs: EngineProbe | None, own: EngineProbe) -> Judgement:
    """Say what a cache of the server that made `theirs` is to the server that made `own`.

    Raises `Incompatible` for one that computes something else, or that did not say.
    """
    if theirs is None or theirs.engine != own.engine:
        raise Incompatible(
            "the artifact does not say how its server computes",
            cause="it was made by another engine, or by another version of kvswap",
            field="engine",
        )
    apart = distances(theirs, own)
    if theirs.digest == own.digest:
        return Judgement("bitwise", apart)
    if not apart.within(NOISE):
        raise Incompatible(
            f"the artifact's server computes something else than this one: their probes are apart by {apart}; "
            f"processors alone make up to {NOISE}",
            cause="one of them runs with --lora, --rope-freq-base, --override-kv or the like",
            hint="run llama-server with the same flags as the publisher",
            field="engine",
        )
    return Judgement("tolerance", apart)
