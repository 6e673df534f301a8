"""What travels in a frame, as values.  Sans-IO: this module only turns structs into bytes and back.

A request is a msgpack map with a `kind`; a response is `{"ok": body}` or `{"error": {code, message}}`.
Requests on one stream are answered in order, so a reader may send several ahead.  Unknown keys are
refused: a change of meaning is a new protocol id, never a new key.

| request   | asks                                                         | answer           |
|-----------|--------------------------------------------------------------|------------------|
| find      | artifacts by document, by id, or by chain digests; a token   | `FindReply`      |
| manifest  | the signed envelope of an artifact                           | bytes            |
| join      | to fetch an artifact: what is here, who else is at it, a token | `JoinReply`    |
| have      | the first two of these again                                 | `HaveReply`      |
| chunk     | the wire bytes of one chunk, on this stream                  | bytes            |
| catalogue | keys of everything here, for longest-prefix look-ups         | `CatalogueReply` |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta

from kvswap.core import wire
from kvswap.core.errors import KvswapError, MalformedMessage, NotFound, PeerBusy, PeerError
from kvswap.core.limits import LIMITS

PROTOCOL = "/kvswap/exchange/4.0.0"
TOPIC = "/kvswap/artifacts/1"

AgentText = Annotated[str, Meta(max_length=64)]
CidText = Annotated[str, Meta(max_length=64)]
DocumentText = Annotated[str, Meta(max_length=71)]
DtypeText = Annotated[str, Meta(max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
PeerText = Annotated[str, Meta(max_length=64)]
AddressText = Annotated[str, Meta(max_length=256)]
TokenText = Annotated[str, Meta(max_length=512)]
Bitmap = Annotated[bytes, Meta(max_length=-(-LIMITS.manifest_chunks // 8))]
AuditBytes = Annotated[bytes, Meta(max_length=LIMITS.audit_bytes)]
HeadBytes = Annotated[bytes, Meta(max_length=LIMITS.head_bytes)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Size = Annotated[int, Meta(ge=0, le=2**53)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Provider(_Message):
    """Somebody who may have something: a referral, to be dialled and checked."""

    peer: PeerText
    addresses: Annotated[list[AddressText], Meta(max_length=8)]


class Find(_Message, tag="find", tag_field="kind"):
    """Exactly one of document, artifact and chain is given.

    With the reader's `model` and `dtype` the first artifact that fits comes with its manifest, without a `model` the
    first.  `bulk` asks for a token: who has an artifact whole can be fetched from at once, and be joined later.
    """

    agent: AgentText
    document: DocumentText | None = None
    artifact: CidText | None = None
    chain: Annotated[list[Digest], Meta(max_length=LIMITS.chain_digests)] | None = None
    model: Digest | None = None
    dtype: DtypeText | None = None
    bulk: bool = False


class GetManifest(_Message, tag="manifest", tag_field="kind"):
    artifact: CidText


class Join(_Message, tag="join", tag_field="kind"):
    """`me` is the reader itself, for other readers of the same artifact; `bulk` asks for a token."""

    artifact: CidText
    me: Provider
    bulk: bool


class Have(_Message, tag="have", tag_field="kind"):
    artifact: CidText


class GetChunk(_Message, tag="chunk", tag_field="kind"):
    cid: CidText


class GetCatalogue(_Message, tag="catalogue", tag_field="kind"):
    """`version` is the one the reader has (0: none)."""

    version: Size


Request = Find | GetManifest | Join | Have | GetChunk | GetCatalogue


class Found(_Message):
    """An artifact somebody offers.  Hints only: the manifest decides.  `complete` false: still fetching it."""

    artifact: CidText
    model: Digest
    dtype: DtypeText
    tokens: Size
    wire_bytes: Size
    publisher: PeerText
    complete: bool
    shared_blocks: Size = 0
    envelope: Annotated[bytes, Meta(max_length=LIMITS.inline_envelope_bytes)] | None = None


class BulkRecord(_Message):
    """Where and as whom `peer` serves HTTPS: signed by its node key (see `net.bulk.record`)."""

    peer: PeerText
    port: Port
    certificate: Digest
    issued: Size
    signature: Signature


class Grant(_Message):
    """A bearer token for the bulk plane, good while this stream is open and for at most `seconds`."""

    token: TokenText
    seconds: Size
    record: BulkRecord


class FindReply(_Message):
    """`asks`: what the answering peer wants for a gigabyte, in millionths of a US dollar.

    `heads`: head records, of the answering node's publisher and of those of what it found.  `audits`: signed
    statements of who verified what was asked for, or found it wrong: the answering node need not have it any more.
    `grant`: where a token was asked for, and something found is here whole.
    """

    agent: AgentText
    publisher: PeerText
    found: Annotated[list[Found], Meta(max_length=LIMITS.find_results)]
    providers: Annotated[list[Provider], Meta(max_length=LIMITS.find_results)]
    asks: Size = 0
    heads: Annotated[list[HeadBytes], Meta(max_length=LIMITS.heads_told)] = []
    audits: Annotated[list[AuditBytes], Meta(max_length=LIMITS.audits_told)] = []
    grant: Grant | None = None


class JoinReply(_Message):
    """`have`: bit i is chunk i of the manifest.  `peers`: others that fetch or have it."""

    have: Bitmap
    peers: Annotated[list[Provider], Meta(max_length=LIMITS.find_results)]
    grant: Grant | None


class HaveReply(_Message):
    have: Bitmap
    peers: Annotated[list[Provider], Meta(max_length=LIMITS.find_results)]


class CatalogueReply(_Message):
    """`keys`: 8 bytes each, sorted; None when the reader's version is the present one."""

    version: Size
    keys: Annotated[bytes, Meta(max_length=LIMITS.catalogue_bytes)] | None


class Announce(_Message):
    """Gossip: a new artifact, and where its provider can be dialled."""

    artifact: CidText
    document: DocumentText | None
    provider: Provider


T = TypeVar("T")


def encode_request(request: Request) -> bytes:
    return wire.pack(wire.plain(request))


def decode_request(frame: bytes) -> Request:
    """Read a request.  Raises `MalformedMessage` for what is none, or is larger than its kind may be."""
    if len(frame) > LIMITS.request_bytes:
        raise MalformedMessage(f"a request of {len(frame)} bytes is over the cap")
    request: Request = wire.unpack(frame, Request, MalformedMessage, items=LIMITS.request_items)  # type: ignore[arg-type]
    if len(frame) > LIMITS.short_request_bytes and not (isinstance(request, Find) and request.chain):
        raise MalformedMessage(f"a request of {len(frame)} bytes is over the cap of its kind")
    return request


def encode_ok(body: Any) -> bytes:
    """The bytes of an answer."""
    return wire.pack({"ok": wire.plain(body)})


def encode_error(error: KvswapError) -> bytes:
    """The bytes of an answer that says why there is none."""
    return wire.pack({"error": {"code": error.code, "message": error.message[:500]}})


class _Told(msgspec.Struct, frozen=True):
    """An error, as a peer tells it; what else it says is skipped."""

    code: Annotated[str, Meta(max_length=64)] = ""
    message: Annotated[str, Meta(max_length=2_000)] = ""


@lru_cache(maxsize=32)
def _response(kind: Any) -> Any:
    unset = msgspec.UNSET
    fields = [("ok", kind | msgspec.UnsetType, unset), ("error", _Told | msgspec.UnsetType, unset)]
    return msgspec.defstruct("Response", fields, frozen=True, forbid_unknown_fields=True)


@dataclass(frozen=True, slots=True)
class Cap:
    """How large an answer may be, in bytes and in items of msgpack."""

    size: int
    items: int = LIMITS.message_items


_CAPS: dict[Any, Cap] = {
    FindReply: Cap(LIMITS.find_reply_bytes, LIMITS.reply_items),
    JoinReply: Cap(LIMITS.join_reply_bytes, LIMITS.reply_items),
    HaveReply: Cap(LIMITS.join_reply_bytes, LIMITS.reply_items),
    CatalogueReply: Cap(LIMITS.catalogue_bytes + LIMITS.error_bytes),
    bytes: Cap(LIMITS.message_bytes),  # an envelope; a chunk's own length is known
}


def cap_of(kind: Any) -> Cap:
    """How large an answer of this type may be.  A frame that is longer is not even read."""
    return _CAPS[kind]


def decode_response(frame: bytes, kind: type[T]) -> T:
    """The body of an answer.  Raises the peer's error, `NotFound`, `PeerBusy` or `PeerError`, or `MalformedMessage`."""
    answer = wire.unpack(frame, _response(cast(Any, kind)), MalformedMessage, items=cap_of(kind).items)
    if (answer.ok is msgspec.UNSET) == (answer.error is msgspec.UNSET):
        raise MalformedMessage("a response is ok or error")
    if answer.error is not msgspec.UNSET:
        message = f"the peer answered: {answer.error.message[:500]}"
        told = {NotFound.code: NotFound, PeerBusy.code: PeerBusy}
        raise told.get(answer.error.code, PeerError)(message)
    body: T = answer.ok
    return body


def encode_announce(announce: Announce) -> bytes:
    return wire.pack(wire.plain(announce))


def decode_announce(data: bytes) -> Announce:
    """Raises `MalformedMessage`."""
    if len(data) > 8192:
        raise MalformedMessage("an announcement is over the cap")
    return wire.unpack(data, Announce, MalformedMessage, items=64)
