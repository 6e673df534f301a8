"""The manifest, versions 1 and 2, as typed values; `manifests/FORMAT.md` describes them field by field.

A manifest says what was computed (model, document, token sequence, layout, numerics), every chunk of it,
until when it holds, and who says so.  `consistency.parse_manifest` accepts only what `consistency.check` proves
consistent; nothing downstream checks shapes again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from kvswap.artifact import version1
from kvswap.artifact.blocks import Blocks
from kvswap.artifact.specs import Count, Digest, LayerGroup, LayerSpec, Layout, Positive, Strict, TensorDigests, Text
from kvswap.core import wire
from kvswap.core.errors import MalformedManifest
from kvswap.core.ids import Cid, blake3_digest
from kvswap.core.limits import LIMITS

VERSION = version1.VERSION
NAMED = 2
"""The version whose layers have named tensors, for what version 1 cannot say."""
AXES = {VERSION: "layer,kv,head,token,dim", NAMED: "layer,tensor,head,row,dim"}
EXACTNESS_CLAIMS = ("bitwise", "token-verified", "tolerance")
PREDICTED_CODECS = frozenset({"predictive", "predictive2"})  # codecs that code against a predictor, each its own
LOSSY_CODECS = frozenset({"int8", "int8-channel"})  # codecs that give other bits back; stated, never chosen

CidBytes = Annotated[bytes, Meta(min_length=36, max_length=36)]
Url = Annotated[str, Meta(max_length=2048)]


class ModelIdentity(Strict, frozen=True):
    """The identity of a model with its tokenizer and adapters: the digests decide, `label` is for people to read."""

    label: Text
    weights: Digest
    config: Digest
    tokenizer: Digest
    adapters: Annotated[list[Digest], Meta(max_length=16)]
    parameters: Count

    @property
    def digest(self) -> bytes:
        """The model identity: one digest over all parts, the label left out."""
        return blake3_digest(self.weights + self.config + self.tokenizer + b"".join(self.adapters))


class DocumentRef(Strict, frozen=True):
    """The document's text, by digest, and where it came from; a manifest of a private document has none (None)."""

    sha256: Digest
    length: Positive
    media_type: Text
    source: Url | None = None
    etag: Text | None = None

    @property
    def reference(self) -> str:
        """The name of the document: `sha256:` and its digest in hex."""
        return "sha256:" + self.sha256.hex()


class TokenSequence(Strict, frozen=True):
    """The token sequence that the cache stands for, by digest; its blocks by chain digests (see `chain`)."""

    tokens: Positive
    token_digest: Digest
    block_tokens: Positive
    chain: Annotated[list[Digest], Meta(max_length=LIMITS.manifest_blocks)]
    start: Count
    special_tokens: bool
    template: Text | None = None


class Numerics(Strict, frozen=True):
    """The environment of a computation: what must be alike for the exactness claim to hold on another machine."""

    schedule: Text
    attention: Text
    compute_dtype: Text
    torch: Text
    transformers: Text
    device: Text
    isa: Text
    threads: Positive
    claim: Text

    @property
    def environment(self) -> tuple[str, ...]:
        """Two machines of equal environment compute equal bits (measured, not proved)."""
        return (self.schedule, self.attention, self.compute_dtype, self.torch, self.transformers, self.device, self.isa)


class ChunkRef(Strict, frozen=True):
    """One chunk: its place, its codec, and digest and length of its wire and raw bytes."""

    block: Count
    run: Count
    codec: Text
    cid: CidBytes
    length: Positive
    raw: Digest
    raw_length: Positive

    @property
    def id(self) -> Cid:
        """The CID of the chunk's wire bytes."""
        return Cid.from_bytes(self.cid)


class FileRef(Strict, frozen=True):
    """A content-addressed file that is fetched like a chunk and is no part of the cache."""

    cid: CidBytes
    length: Positive

    @property
    def id(self) -> Cid:
        """The CID of the file's wire bytes."""
        return Cid.from_bytes(self.cid)

    @property
    def raw_length(self) -> int:
        """The bytes of the cache that the file holds: none."""
        return 0


class Probe(Strict, frozen=True):
    """First greedy tokens after a fixed question: shows a mismatch early, proves nothing."""

    question: Annotated[list[Count], Meta(max_length=LIMITS.probe_tokens)]
    tokens: Annotated[list[Count], Meta(max_length=LIMITS.probe_tokens)]
    logits: Digest


class Divergence(Strict, frozen=True):
    """The difference between a lossy cache's answers and those of the exact cache it was made from, after the probe.

    Of `steps` greedy tokens `equal` are the same in the same place, the first that differs is number `first`
    (from 0; `steps` without one).  `kl`: mean Kullback-Leibler divergence of the next token's distribution,
    exact from lossy, over the exact tokens, in millionths of a nat.
    """

    steps: Positive
    equal: Count
    first: Count
    kl: Count


class EngineProbe(Strict, frozen=True):
    """The work of a serving engine on fixed tokens, by which servers that compute otherwise are told apart.

    `digest` is over all of it, `sketch` a projection that keeps distances; both are defined by `engine`.  `version` is
    for people to read.
    """

    engine: Text
    version: Text
    digest: Digest
    sketch: Annotated[bytes, Meta(max_length=LIMITS.probe_sketch_bytes)]


class Life(Strict, frozen=True):
    """The lifetime of an artifact in Unix seconds, and its place in the publisher's sequence of statements."""

    issued: Count
    expires: Count
    sequence: Count
    supersedes: CidBytes | None = None


class Manifest(Strict, frozen=True, dict=True):
    """A whole manifest.  Build one with keyword arguments, or read one with `consistency.parse_manifest`."""

    version: int
    model: ModelIdentity
    prefix: TokenSequence
    layout: Layout
    numerics: Numerics
    tensors: Annotated[list[TensorDigests], Meta(max_length=LIMITS.manifest_layers)]
    chunks: Annotated[list[ChunkRef], Meta(max_length=LIMITS.manifest_chunks)]
    probe: Probe
    life: Life
    publisher: Annotated[str, Meta(max_length=64)]
    document: DocumentRef | None = None
    predictor: FileRef | None = None  # what predicted chunks are coded with
    divergence: Divergence | None = None
    fingerprint: FileRef | None = None  # what independent publishers are compared by
    extensions: Annotated[list[Text], Meta(max_length=16)] = msgspec.field(default_factory=list)
    engine: EngineProbe | None = None  # of the server that computed it; an extension, which other readers pass over

    def encode(self) -> bytes:
        """Encode the manifest as the payload bytes to sign."""
        given = {name: value for name in _TYPES if (value := getattr(self, name)) is not None or name not in _ABSENT}
        return wire.pack_fields(given | self._versioned, _TOGETHER)

    @property
    def _versioned(self) -> dict[str, Any]:
        """The fields that versions write in other ways, as this one's does."""
        if self.version != VERSION:
            return {}
        return {"layout": version1.layout_to(self.layout), "tensors": version1.digests_to(self.tensors)}

    @cached_property
    def blocks(self) -> Blocks:
        """The blocks in which the artifact was computed and is stored."""
        return Blocks(self.prefix.tokens, self.prefix.block_tokens, self.layout.checkpoints)

    @cached_property
    def files(self) -> tuple[ChunkRef | FileRef, ...]:
        """The files that are stored and sent: the chunks in order, then predictor and fingerprint, if any."""
        return (*self.chunks, *(file for file in (self.predictor, self.fingerprint) if file))

    def ids_of(self, indices: Iterable[int]) -> list[Cid]:
        """Return the ids of the files at these indices into `files`."""
        files = self.files
        return [files[index].id for index in indices]

    @property
    def codecs(self) -> list[str]:
        """The names of the chunks' codecs, the one with the most chunks first."""
        return [name for name, _ in Counter(c.codec for c in self.chunks).most_common()]

    @property
    def lossless(self) -> bool:
        """True if the cache is lossless: the model's own bits come back."""
        return self.divergence is None

    @property
    def raw_bytes(self) -> int:
        """The bytes of all chunks before coding."""
        return sum(c.raw_length for c in self.chunks)

    @property
    def wire_bytes(self) -> int:
        """The bytes of all chunks as they are stored and sent, predictor and fingerprint left out."""
        return sum(c.length for c in self.chunks)

    def to_json(self) -> dict[str, Any]:
        """Return what `kvswap show --json` prints: digests in hex, CIDs in their text form."""
        out: dict[str, Any] = wire.jsonable(wire.plain(msgspec.structs.replace(self, chunks=[])))
        out |= {name: wire.jsonable(wire.plain(value)) for name, value in self._versioned.items()}
        out["chunks"] = [wire.jsonable(wire.plain(chunk)) | {"cid": str(chunk.id)} for chunk in self.chunks]
        out["model"]["identity"] = self.model.digest.hex()
        if self.engine is None:
            del out["engine"]
        for name in ("predictor", "fingerprint"):
            if (file := getattr(self, name)) is not None:
                out[name]["cid"] = str(file.id)
        if self.life.supersedes:
            out["life"]["supersedes"] = str(Cid.from_bytes(self.life.supersedes))
        return out


_ABSENT = ("predictor", "divergence", "fingerprint", "engine")
_EXTENSIONS = frozenset({"engine"})
"""Fields that came after the format: they are declared as extensions, so that readers of before pass over them."""
_NULL = b"\xc0"
_TYPES = get_type_hints(Manifest, include_extras=True)
_TYPES_V1: dict[str, Any] = {
    "layout": version1.LayoutV1,
    "tensors": Annotated[list[version1.DigestsV1], Meta(max_length=LIMITS.manifest_layers)],
}
_KNOWN = frozenset(_TYPES)
_REQUIRED = tuple(field.name for field in msgspec.structs.fields(Manifest) if field.required)
_TOGETHER = 512  # chunks that are decoded or encoded at a time: between two times other threads go on


def layout_of(
    dtype: str, rope: str, layers: list[LayerSpec], groups: list[LayerGroup], checkpoints: Sequence[int] = ()
) -> Layout:
    """Describe what a cache is made of, in the oldest version of the manifest that can say it."""
    layout = Layout(dtype, AXES[NAMED], rope, layers, groups, list(checkpoints))
    return msgspec.structs.replace(layout, axes=AXES[VERSION]) if version1.fits(layout) else layout


def version_of(layout: Layout) -> int:
    """Return the version of the manifest that a layout is made for."""
    return VERSION if layout.axes == AXES[VERSION] else NAMED


def decode_manifest(payload: bytes) -> Manifest:
    """Decode the manifest of a payload, and check each field by itself.  Raises `MalformedManifest`.

    Whether the fields agree with each other is not checked: `consistency.parse_manifest` does both.
    """
    if len(payload) > LIMITS.manifest_bytes:
        raise MalformedManifest(f"a payload of {len(payload)} bytes is over the cap")
    given = wire.fields(payload, items=LIMITS.manifest_items)
    version = wire.decode(given["version"], int, at="version") if "version" in given else None
    if version not in AXES:
        raise MalformedManifest(
            f"manifest version {str(version)[:20]} is not {VERSION} or {NAMED}",
            cause="the publisher uses a newer kvswap",
            field="version",
        )
    for name in _ABSENT:
        if name in given and bytes(given[name]) == _NULL:
            raise MalformedManifest(f"{name} is there or absent, never null", field=name)
    values = _fields_of(given, _TYPES | (_TYPES_V1 if version == VERSION else {}))
    if version == VERSION:
        values["layout"] = version1.layout_from(values["layout"])
        values["tensors"] = version1.digests_from(values["tensors"])
    return Manifest(**values)


def _fields_of(given: dict[str, msgspec.Raw], types: dict[str, Any]) -> dict[str, Any]:
    """Decode the known fields of a manifest one by one; fields that only its extensions name are not even built."""
    declared = wire.decode(given["extensions"], _TYPES["extensions"], at="extensions") if "extensions" in given else []
    if (_KNOWN - _EXTENSIONS).intersection(declared):
        raise MalformedManifest("an extension may not take the name of a field", field="extensions")
    if extra := set(given).difference(_KNOWN - _EXTENSIONS, declared):
        name = min(extra)[:40]
        raise MalformedManifest(f"unknown field {name!r}", cause="the publisher uses a newer format", field=name)
    for name in _EXTENSIONS.intersection(declared) - set(given):
        raise MalformedManifest(f"the extension {name} is declared and is not there", field=name)
    for name in _REQUIRED:
        if name not in given:
            raise MalformedManifest(f"not a valid manifest: the required field `{name}` is missing", field=name)
    return {
        name: _chunks(given[name]) if name == "chunks" else wire.decode(given[name], types[name], at=name)
        for name in given
        if name in _KNOWN
    }


def _chunks(data: msgspec.Raw) -> list[ChunkRef]:
    """Decode the list of chunks piece by piece.

    A hundred thousand at once would keep the interpreter from all other threads for a tenth of a second.
    """
    out: list[ChunkRef] = []
    for part in wire.pieces(data, _TOGETHER, LIMITS.manifest_chunks, at="chunks"):
        try:
            out += wire.decode(part, list[ChunkRef])
        except MalformedManifest as error:
            raise _numbered(error, len(out)) from error
    return out


def _numbered(error: MalformedManifest, start: int) -> MalformedManifest:
    """Return the error with the number of the chunk in the whole list."""
    inside, _, rest = str(error.details.get("field", "")).removeprefix("[").partition("]")
    where = f"chunks[{start + int(inside)}]{rest}" if inside.isdigit() else "chunks"
    return MalformedManifest(f"not a valid manifest: {error.message} (of {where})", field=where)
