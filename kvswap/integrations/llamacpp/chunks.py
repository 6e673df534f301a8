"""Between chunks of an artifact and keys and values as llama.cpp keeps them.  No torch is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby

import numpy as np

from kvswap.artifact import layout as layouts
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.manifest import ChunkRef, Manifest, layout_of
from kvswap.artifact.parts import (
    ChunkSource,
    EncodedChunk,
    Layers,
    by_layer,
    context_of,
    decode_chunk,
    digest_parts,
    encode_chunk,
    read_predictor,
)
from kvswap.artifact.sealing import Seal
from kvswap.artifact.specs import Layout, TensorDigests
from kvswap.codec import Part, Predictor
from kvswap.codec.parts import WORD
from kvswap.core.errors import Incompatible, UsageError
from kvswap.integrations.llamacpp.building import LayerRows
from kvswap.integrations.llamacpp.mapping import GgufLayout, model_rows, parts_of, rows_of
from kvswap.integrations.llamacpp.state import SlotFile


class GatheredSequence:
    """Keys and values of a sequence, gathered of slot files that were saved one after the other.

    A model whose layers all keep every token needs one.  Sliding layers keep the last ones alone, so that one has to be
    saved each time before a window's worth of tokens has passed.
    """

    def __init__(self, layout: GgufLayout) -> None:
        self.layout = layout
        self.ids: tuple[int, ...] = ()
        self._pieces: list[list[LayerRows]] = [[] for _ in layout.layers]

    def add(self, file: SlotFile) -> None:
        """Take the tokens of a slot file that are new.

        Raises `Incompatible` if it is of another sequence, or does not hold all that came since the one before.
        """
        if file.ids[: len(self.ids)] != self.ids:
            raise Incompatible("the slot file is of another sequence than the ones before", field="tokens")
        start, stop = len(self.ids), len(file.ids)
        low = max(cache.first for cache in file.state.caches)
        if low > start:
            raise Incompatible(
                f"the sliding layers do not hold the tokens from {start} to {low - 1} any more",
                cause="more tokens were computed between two saves than their window holds",
                field="tokens",
            )
        if stop > start:
            for pieces, rows in zip(self._pieces, model_rows(self.layout, file, start, stop), strict=True):
                pieces.append(rows)
        self.ids = file.ids

    def rows(self, layer: int) -> LayerRows:
        """Return keys and values of all tokens of a layer of the model."""
        pieces = self._pieces[layer]
        if len(pieces) > 1:
            keys, values = (np.concatenate(part) for part in zip(*((p.keys, p.values) for p in pieces), strict=True))
            self._pieces[layer] = pieces = [LayerRows(keys, values)]
        return pieces[0]


def artifact_layout(layout: GgufLayout, block_tokens: int) -> Layout:
    """Return the layout of a manifest for artifacts of this model and server."""
    groups = layouts.plan_groups(layout.layers, layout.dtype, block_tokens)
    return layout_of(layout.dtype, layout.rope, list(layout.layers), groups)


def encode_sequence(
    gathered: GatheredSequence, shape: Layout, block_tokens: int, codec: str, predictor: Predictor | None = None
) -> Iterator[EncodedChunk | list[TensorDigests]]:
    """Encode every chunk of a sequence, in order; what is yielded last are the digests of all tensors.

    `predictor` is what the codec `predictive` codes against; other codecs need none.
    """
    tokens = len(gathered.ids)
    parts = [parts_of(gathered.layout, layer, gathered.rows(layer)) for layer in range(len(shape.layers))]
    for block, (start, stop) in enumerate(Blocks(tokens, block_tokens)):
        earlier: Layers = {}
        for group, members in enumerate(shape.members):
            first, last = layouts.stored_span(shape.layers[members[0][0]], start, stop)
            if first < last:
                taken = [np.ascontiguousarray(parts[layer][place][:, first:last]) for layer, place in members]
                context = context_of(predictor, shape, group, first, earlier)
                yield encode_chunk(taken, shape.group_dtype(group), codec, block, group, context)
                if predictor is not None:
                    earlier |= by_layer(shape, group, taken)
    digests: list[TensorDigests] = []
    for spec, held in zip(shape.layers, parts, strict=True):
        first, last = layouts.held_span(spec, tokens)
        digests.append(tuple(digest_parts([part[:, first:last]]) for part in held))
    yield digests


def load_rows(
    manifest: Manifest, layout: GgufLayout, source: ChunkSource, tokens: int, seal: Seal | None = None
) -> list[LayerRows]:
    """Load keys and values of the first `tokens` tokens in the order of the model's layers, every chunk checked.

    `source` returns a chunk's wire bytes and is called from several threads.  Raises `Incompatible` for an artifact
    that is not laid out as this server's states are, `IntegrityError` naming a damaged chunk.
    """
    require_layout(manifest, layout)
    if layouts.resumable(manifest, tokens) != tokens:
        raise UsageError(f"cannot resume after {tokens} tokens", cause="it is no end of a block")
    refs = [manifest.chunks[index] for index in layouts.needed(manifest, tokens)]
    places = _Places(manifest, refs, tokens)
    predictor = read_predictor(manifest.predictor.id, source, seal=seal) if manifest.predictor else None

    def decode(block: Sequence[ChunkRef]) -> None:
        earlier: Layers = {}
        for ref in block:
            decode_chunk(manifest, ref, source(ref.id), places.of(ref), predictor, earlier, seal)

    with ThreadPoolExecutor(os.cpu_count() or 1, "kvswap-load") as pool:
        for done in [pool.submit(decode, task) for task in _tasks(refs, predictor)]:
            done.result()
    return [rows_of(layout, (keys, values)) for keys, values in places.held()]


def _tasks(refs: Sequence[ChunkRef], predictor: Predictor | None) -> list[list[ChunkRef]]:
    """Return what can be decoded independently: with a predictor whole blocks, else every chunk."""
    if predictor is None:
        return [[ref] for ref in refs]
    return [list(group) for _, group in groupby(refs, lambda ref: ref.block)]


def require_layout(manifest: Manifest, layout: GgufLayout) -> None:
    """Raise `Incompatible` naming the field unless an artifact is laid out as this server's states are."""
    theirs = manifest.layout
    for field, have, wanted in (
        ("dtype", theirs.dtype, layout.dtype),
        ("rope", theirs.rope, layout.rope),
        ("layers", tuple(theirs.layers), layout.layers),
    ):
        if have != wanted:
            raise Incompatible(
                f"the artifact's {field} is not this server's",
                cause="it was made with another --cache-type, or by another release of llama.cpp",
                field=f"layout.{field}",
            )


class _Places:
    """Arrays for the tensors of an artifact's beginning, into which chunks are decoded."""

    def __init__(self, manifest: Manifest, refs: Sequence[ChunkRef], tokens: int) -> None:
        self._manifest, self._tokens = manifest, tokens
        layout = manifest.layout
        low = [tokens] * len(layout.layers)
        for ref in refs:
            for layer in layout.groups[ref.run].layers:
                low[layer] = min(low[layer], self._span(layer, ref.block)[0])
        self._low = low
        self._arrays = [
            tuple(
                np.empty(tensor.part_shape(tokens - low[layer]), WORD[layout.dtype_of(tensor)])
                for tensor in spec.tensors
            )
            for layer, spec in enumerate(layout.layers)
        ]

    def _span(self, layer: int, block: int) -> tuple[int, int]:
        return layouts.stored_span(self._manifest.layout.layers[layer], *self._manifest.blocks.span(block))

    def of(self, ref: ChunkRef) -> list[Part]:
        """Return where the tensors of a chunk go."""
        out: list[Part] = []
        for layer, place in self._manifest.layout.members[ref.run]:
            first, last = self._span(layer, ref.block)
            low = self._low[layer]
            out.append(self._arrays[layer][place][:, first - low : last - low])
        return out

    def held(self) -> Iterator[tuple[Part, Part]]:
        """Iterate over keys and values of each layer as held after the last token."""
        for layer, spec in enumerate(self._manifest.layout.layers):
            first, _ = layouts.held_span(spec, self._tokens)
            keys, values = (array[:, first - self._low[layer] :] for array in self._arrays[layer])
            yield keys, values
