"""The consistency of a manifest's fields with each other: all that can be shown to be wrong from its bytes alone."""

from __future__ import annotations

from kvswap.artifact.layout import block_count, expected_chunks, fingerprint_length
from kvswap.artifact.manifest import (
    AXES,
    EXACTNESS_CLAIMS,
    ITEM_BYTES,
    LOSSY_CODECS,
    FileRef,
    Layout,
    Manifest,
    decode_manifest,
)
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
    blocks = block_count(prefix.tokens, prefix.block_tokens)
    _require(blocks <= LIMITS.manifest_blocks, "prefix.tokens", f"{blocks} blocks are over the cap")
    _require(len(prefix.chain) == blocks, "prefix.chain", f"{len(prefix.chain)} chain digests for {blocks} blocks")
    _check_layout(layout)
    _require(
        manifest.numerics.claim in EXACTNESS_CLAIMS, "numerics.claim", f"unknown claim {manifest.numerics.claim[:40]!r}"
    )
    _require(len(manifest.tensors) == len(layout.layers), "tensors", "one pair of digests a layer is needed")
    _require(len(manifest.chunks) <= LIMITS.manifest_chunks, "chunks", "more chunks than the cap")
    expected = expected_chunks(layout, prefix.tokens, prefix.block_tokens)
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
    predictive = any(chunk.codec == "predictive" for chunk in manifest.chunks)
    _require(predictive == (manifest.predictor is not None), "predictor", "predictive chunks, and they alone, have one")
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


def _check_layout(layout: Layout) -> None:
    _require(layout.dtype in ITEM_BYTES, "layout.dtype", f"unknown dtype {layout.dtype[:40]!r}")
    _require(layout.axes == AXES, "layout.axes", f"axis order is {layout.axes[:60]!r}, not {AXES}")
    _require(0 < len(layout.layers) <= LIMITS.manifest_layers, "layout.layers", "no layers, or over the cap")
    for index, layer in enumerate(layout.layers):
        where = f"layout.layers[{index}]"
        _require(layer.kind in ("full", "sliding"), where, f"unknown layer kind {layer.kind!r}")
        _require((layer.kind == "sliding") == (layer.window is not None), where, "sliding layers have a window")
        _require(max(layer.heads, layer.k_dim, layer.v_dim) <= 1 << 16, where, "a dimension is over the cap")
    _require(bool(layout.runs) and all(layout.runs), "layout.runs", "a layer group is empty")
    flat = [index for layer_group in layout.runs for index in layer_group]
    _require(sorted(flat) == list(range(len(layout.layers))), "layout.runs", "runs are not a partition of the layers")
    for layer_group in layout.runs:
        specs = {layout.layers[index] for index in layer_group}
        _require(len(specs) == 1, "layout.runs", "a run mixes layer kinds or shapes")
