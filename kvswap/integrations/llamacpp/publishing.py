"""Publishing what llama.cpp computed: prefilled piece by piece, saved, cut into chunks, and sent to the node.

Keys and values of models whose layers all keep every token are the same whatever the batches are, as long as each has
64 tokens or more (measured); so none is sent that would be smaller.  Sliding layers are saved a window's worth at a
time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import kvswap.model
from kvswap.api import ComputedResult
from kvswap.artifact.manifest import DocumentRef, Numerics
from kvswap.artifact.parts import EncodedChunk
from kvswap.client import Client
from kvswap.codec import predictive
from kvswap.core import wire
from kvswap.core.errors import Incompatible
from kvswap.integrations.llamacpp.chunks import GatheredSequence, artifact_layout, encode_sequence
from kvswap.integrations.llamacpp.mapping import GgufLayout
from kvswap.integrations.llamacpp.server import Described, LlamaServer
from kvswap.worker.protocol import frame

_SHIPPED = Path(kvswap.model.__file__).parent / "predictors"

BATCH = 512  # llama.cpp's usual --ubatch-size
LEAST = 64  # tokens of a batch, from which on keys and values do not depend on it

Progress = Callable[[int], None]
"""Called with the tokens that are computed so far."""


def ends_of(tokens: int, window: int | None) -> list[int]:
    """Return the token counts up to which a document is computed and, with sliding layers, saved."""
    step = min(window, BATCH) if window is not None else tokens
    ends = [*range(step, tokens, step), tokens]
    rest = tokens % BATCH
    if window is None and 0 < rest < LEAST and tokens > BATCH:
        ends = [tokens - rest - 2 * LEAST, tokens]  # so that the last batch is none of a few tokens
    return ends


def computed_sequence(
    server: LlamaServer,
    described: Described,
    ids: Sequence[int],
    seconds: float,
    progress: Progress | None = None,
    slot: int = 0,
) -> GatheredSequence:
    """Prefill tokens in a slot and return their keys and values; `seconds` is the longest that one step may take."""
    gathered = GatheredSequence(described.layout)
    window = described.layout.window
    for end in ends_of(len(ids), window):
        server.compute(ids[:end], seconds, slot=slot)
        if window is not None or end == len(ids):
            gathered.add(server.save(slot))
        if progress is not None:
            progress(end)
    return gathered


def numerics_of(described: Described) -> Numerics:
    """Return what a manifest says of how a server computes: the digest of its probe stands for all of it."""
    layout, probe = described.layout, described.probe
    return Numerics(
        schedule="llama.cpp",
        attention="plain" if described.shape.transposed else "flash",
        compute_dtype=layout.dtype,
        torch="",
        transformers="",
        device="",
        isa=f"probe {probe.digest.hex()}",
        threads=1,  # does not show in keys and values
        claim="tolerance" if layout.window is not None else "bitwise",
    )


def publish_sequence(
    client: Client,
    described: Described,
    gathered: GatheredSequence,
    *,
    block_tokens: int,
    codec: str = "planes",
    group: str | None = None,
    document: DocumentRef | None = None,
) -> ComputedResult:
    """Publish the keys and values of a sequence through the node.

    `codec` may be `predictive` where a predictor fits the model.  Raises `Incompatible` where none does, and what
    `Client.publish_computed` raises.
    """
    return client.publish_computed(frames_of(described, gathered, block_tokens, codec, group, document))


def shipped_predictor(layout: GgufLayout) -> bytes:
    """Return the shipped predictor that fits a model: of the same number of layers, of as many channels each.

    It may have been trained on other weights of the same model: what it does not predict costs bytes, and no bits.
    Raises `Incompatible` where there is none.
    """
    for path in sorted(_SHIPPED.iterdir()) if layout.halves else ():
        data = path.read_bytes()
        stacks = predictive.load(data).stacks
        if len(stacks) == 1 and stacks[0].layers == tuple(range(len(layout.layers))):
            channels = {(len(k.mean), len(v.mean)) for k, v in zip(stacks[0].k, stacks[0].v, strict=True)}
            wanted = {tuple(tensor.heads * tensor.dim for tensor in layer.tensors) for layer in layout.layers}
            if channels == wanted:
                return data
    raise Incompatible(
        "no predictor fits this model, so its cache cannot be coded with `predictive`",
        cause="one is shipped for SmolLM2-135M, for caches of f16 and bf16",
        hint="kvswap publish FILE --model MODEL.gguf --codec planes",
        field="codec",
    )


def frames_of(
    described: Described,
    gathered: GatheredSequence,
    block_tokens: int,
    codec: str,
    group: str | None,
    document: DocumentRef | None,
) -> Iterator[bytes]:
    """Yield the frames of the body of `POST /v1/computed`."""
    shape = artifact_layout(gathered.layout, block_tokens)
    packed = shipped_predictor(gathered.layout) if codec == "predictive" else None
    predictor = predictive.load(packed) if packed is not None else None
    head = {
        "model": wire.plain(described.identity),
        "dtype": gathered.layout.dtype,
        "ids": list(gathered.ids),
        "block_tokens": block_tokens,
        "numerics": wire.plain(numerics_of(described)),
        "engine": wire.plain(described.probe),
        "document": wire.plain(document) if document is not None else None,
        "group": group,
        "predictor": packed,
        "compare": False,  # the model process has no such model
    }
    yield frame(head)
    for made in encode_sequence(gathered, shape, block_tokens, codec, predictor):
        if isinstance(made, EncodedChunk):
            data = {"event": "chunk", "ref": wire.plain(made.ref), "data": made.wire, "us": int(made.seconds * 1e6)}
            yield frame(data)
        else:
            yield frame({"result": {"layout": wire.plain(shape), "tensors": wire.plain(made)}})
