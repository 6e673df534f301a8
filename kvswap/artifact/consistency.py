"""The consistency of a manifest's fields with each other: all that can be shown to be wrong from its bytes alone."""

from __future__ import annotations

import math

from kvswap.artifact import version1
from kvswap.artifact.layout import expected_chunks, fingerprint_length
from kvswap.artifact.manifest import (
    AXES,
    EXACTNESS_CLAIMS,
    LOSSY_CODECS,
    PREDICTED_CODECS,
    VERSION,
    FileRef,
    Manifest,
    decode_manifest,
)
from kvswap.artifact.specs import ITEM_BYTES, LayerSpec, Layout, TensorSpec
from kvswap.core.defaults import OPAQUE_DTYPES
from kvswap.core.errors import MalformedManifest, UsageError
from kvswap.core.ids import Cid, PeerId
from kvswap.core.limits import LIMITS


def parse_manifest(payload: bytes, added: int = 0) -> Manifest:
    """Parse a manifest's payload and check it.  Raises `MalformedManifest` naming the field.

    `added`: bytes by which every file is longer than its codec made it, where it is sealed.
    """
    manifest = decode_manifest(payload)
    check(manifest, added)
    return manifest


def check(manifest: Manifest, added: int = 0) -> None:
    """Raise `MalformedManifest` unless every field agrees with every other.  Pure; linear time.

    `added`: bytes by which every file is longer than its codec made it (see `sealing`).
    """
    prefix, layout, life = manifest.prefix, manifest.layout, manifest.life
    _require(prefix.start == 0, "prefix.start", "only prefixes that start at position 0 are exchanged")
    _require(prefix.block_tokens <= LIMITS.block_tokens, "prefix.block_tokens", "the block is over the cap")
    whole = -(-prefix.tokens // prefix.block_tokens)
    _require(whole <= LIMITS.manifest_blocks, "prefix.tokens", f"{whole} blocks are over the cap")
    _check_layout(manifest.version, layout)
    _check_checkpoints(manifest)
    blocks = len(manifest.blocks)
    _require(len(prefix.chain) == blocks, "prefix.chain", f"{len(prefix.chain)} chain digests for {blocks} blocks")
    _require(
        manifest.numerics.claim in EXACTNESS_CLAIMS, "numerics.claim", f"unknown claim {manifest.numerics.claim[:40]!r}"
    )
    counts = [len(layer.tensors) for layer in layout.layers]
    _require(
        [len(divergence) for divergence in manifest.tensors] == counts,
        "tensors",
        "each tensor of each layer has its digest",
    )
    _require(len(manifest.chunks) <= LIMITS.manifest_chunks, "chunks", "more chunks than the cap")
    expected = expected_chunks(layout, manifest.blocks)
    for index, chunk in enumerate(manifest.chunks):
        where = f"chunks[{index}]"
        wanted = next(expected, None)
        _require(
            wanted == (chunk.block, chunk.run, chunk.raw_length),
            where,
            f"chunk {index} is (block, run, raw length) {(chunk.block, chunk.run, chunk.raw_length)} "
            f"where the layout needs {wanted}",
        )
        _require(chunk.raw_length <= LIMITS.chunk_bytes, where, "the chunk is over the cap")
        coded = chunk.length - added
        _require(0 < coded <= chunk.raw_length, where, "wire bytes exceed raw bytes, or there are none")
        _require(chunk.codec != "raw" or coded == chunk.raw_length, where, "a raw chunk has its raw length")
        opaque = layout.group_dtype(chunk.run) in OPAQUE_DTYPES and chunk.codec != "raw"
        _require(not opaque, where, "what is quantised already is raw")
        lossy_state = chunk.codec in LOSSY_CODECS and layout.is_state(chunk.run)
        _require(not lossy_state, where, "a state is never coded with a loss")
        try:
            Cid.from_bytes(chunk.cid)
        except UsageError as error:
            raise MalformedManifest(f"{where}: {error.message}", field=where) from error
    _require(next(expected, None) is None, "chunks", "chunks are missing")
    _check_predictor(manifest)
    _check_divergence(manifest)
    _check_fingerprint(manifest, added)
    _require(life.issued < life.expires, "life", "it expires before it is issued")
    _require(life.expires - life.issued <= LIMITS.life_seconds, "life", "the life is over the cap")
    try:
        PeerId.parse(manifest.publisher)
        if life.supersedes is not None:
            Cid.from_bytes(life.supersedes)
    except UsageError as error:
        raise MalformedManifest(error.message, field="publisher") from error


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise MalformedManifest(message, field=field)


def _check_predictor(manifest: Manifest) -> None:
    predicted = {chunk.codec for chunk in manifest.chunks} & PREDICTED_CODECS
    _require(len(predicted) < 2, "chunks", "a predictor is for one codec")
    has_one = manifest.predictor is not None
    _require(bool(predicted) == has_one, "predictor", "predictive chunks, and they alone, have one")
    if manifest.predictor is not None:
        _require(manifest.predictor.length <= LIMITS.predictor_bytes, "predictor", "the predictor is over the cap")
        _check_file(manifest.predictor, "predictor")


def _check_fingerprint(manifest: Manifest, added: int) -> None:
    if manifest.fingerprint is not None:
        wanted = fingerprint_length(manifest) + added
        _require(
            manifest.fingerprint.length == wanted, "fingerprint", f"a fingerprint of this layout has {wanted} bytes"
        )
        _check_file(manifest.fingerprint, "fingerprint")


def _check_file(file: FileRef, field: str) -> None:
    try:
        Cid.from_bytes(file.cid)
    except UsageError as error:
        raise MalformedManifest(error.message, field=field) from error


def _check_divergence(manifest: Manifest) -> None:
    lossy = any(chunk.codec in LOSSY_CODECS for chunk in manifest.chunks)
    divergence = manifest.divergence
    _require(
        lossy == (divergence is not None), "divergence", "lossy chunks, and they alone, come with their divergence"
    )
    if divergence is not None:
        within = (
            divergence.steps <= LIMITS.probe_tokens
            and divergence.equal <= divergence.steps
            and divergence.first <= divergence.steps
        )
        _require(within, "divergence", "it counts more tokens than there are")


def _check_layout(version: int, layout: Layout) -> None:
    _require(layout.dtype in ITEM_BYTES, "layout.dtype", f"unknown dtype {layout.dtype[:40]!r}")
    _require(layout.axes == AXES[version], "layout.axes", f"axis order is {layout.axes[:60]!r}, not {AXES[version]}")
    _require(0 < len(layout.layers) <= LIMITS.manifest_layers, "layout.layers", "no layers, or over the cap")
    for index, layer in enumerate(layout.layers):
        where = f"layout.layers[{index}]"
        _require(
            (layer.kind.startswith("sliding")) == (layer.window is not None), where, "sliding layers have a window"
        )
        _check_layer(layout, layer, where)
        _require(version != VERSION or layer.kind in version1.KINDS, where, f"unknown layer kind {layer.kind!r}")
    _check_groups(layout, "layout.runs" if version == VERSION else "layout.groups")


_KINDS = ("full", "sliding", "latent", "state", "full+state", "sliding+state", "latent+state")


def _check_layer(layout: Layout, layer: LayerSpec, where: str) -> None:
    _require(layer.kind in _KINDS, where, f"unknown layer kind {layer.kind!r}")
    names = [tensor.name for tensor in layer.tensors]
    _require(len(set(names)) == len(names), where, "two tensors of one name")
    grows = any(tensor.per == "token" for tensor in layer.tensors)
    _require(
        layer.has_states == layer.kind.endswith("state"), where, f"a layer of kind {layer.kind} with other tensors"
    )
    _require(grows == (layer.kind != "state"), where, f"a layer of kind {layer.kind} with other tensors")
    for tensor in layer.tensors:
        _check_tensor(layout, tensor, where)


def _check_tensor(layout: Layout, tensor: TensorSpec, where: str) -> None:
    _require(max(tensor.shape) <= LIMITS.tensor_axis, where, "a dimension is over the cap")
    _require(tensor.per == "checkpoint" or len(tensor.shape) < 3, where, "an axis too many beside that of the tokens")
    dtype = layout.dtype_of(tensor)
    known = tensor.dtype is None or tensor.dtype in ITEM_BYTES  # an empty name is none
    _require(known, where, f"unknown dtype {str(tensor.dtype)[:40]!r}")
    _require(tensor.dtype != layout.dtype, where, "a tensor names its dtype only where it is not the layout's")
    size = math.prod(tensor.shape) * ITEM_BYTES[dtype]
    _require(size <= LIMITS.chunk_bytes, where, "a tensor is over the cap")


def _check_groups(layout: Layout, field: str) -> None:
    layers = layout.layers
    _require(0 < len(layout.groups) <= LIMITS.manifest_groups, field, "no groups, or over the cap")
    # By number before anything is looked at: so many groups of so many layers each would take seconds.
    members = sum(len(group.layers) * len(group.tensors) for group in layout.groups)
    _require(members == sum(len(layer.tensors) for layer in layers), field, "they are not a partition of the layers")
    divergence = []
    for group in layout.groups:
        _require(bool(group.layers), field, "a group without layers")
        _require(max(group.layers) < len(layers), field, "a layer that is not there")
        specs = {layers[index] for index in group.layers}
        _require(len(specs) == 1, field, "a group mixes layer kinds or shapes")
        tensors = [tensor for tensor in specs.pop().tensors if tensor.name in group.tensors]
        _require([tensor.name for tensor in tensors] == list(group.tensors), field, "tensors that are not there")
        alike = {(layout.dtype_of(tensor), tensor.rows) for tensor in tensors}
        _require(len(alike) == 1, field, "a group mixes dtypes or states of several shapes")
        divergence += [(index, name) for index in group.layers for name in group.tensors]
    wanted = [(index, tensor.name) for index, layer in enumerate(layers) for tensor in layer.tensors]
    _require(sorted(divergence) == sorted(wanted), field, "they are not a partition of the layers")


def _check_checkpoints(manifest: Manifest) -> None:
    """Require checkpoints in order, the end among them; and so many that every one ends a block."""
    tokens, points = manifest.prefix.tokens, manifest.layout.checkpoints
    where = "layout.checkpoints"
    _require(bool(points) or not manifest.layout.has_states, where, "states without a checkpoint")
    if not points:
        return
    _require(points == sorted(set(points)), where, "they are not in order")
    _require(points[-1] == tokens, where, "the last one is the end")
    cuts = sum(1 for point in points if point % manifest.prefix.block_tokens)
    _require(cuts <= LIMITS.manifest_cuts + 1, where, "too many cuts between whole blocks")
