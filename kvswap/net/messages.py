"""The wire messages of the exchange protocol, as typed values.  Sans-IO: structs to bytes and back, nothing else.

A request is a msgpack map with a `kind`; a response is `{"ok": body}` or `{"error": {code, message}}`.  Requests on one
stream are answered in order, so a reader may pipeline several.  Unknown keys are refused: a change of meaning is a new
protocol id, never a new key.

| request   | asks for                                                         | answer           |
|-----------|------------------------------------------------------------------|------------------|
| find      | artifacts by document, by id, or by chain digests; a token       | `FindReply`      |
| manifest  | the signed envelope of an artifact                               | bytes            |
| join      | which chunks are here, who else fetches the artifact; a token    | `JoinReply`      |
| have      | the first two of these again                                     | `HaveReply`      |
| chunk     | the wire bytes of one chunk, on this stream                      | bytes            |
| catalogue | the prefix index of all complete artifacts here                  | `PrefixIndexReply` |

The format is specified in `docs/protocol.md`.
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
HeadBytes = Annotated[bytes, Meta(max_length=LIMITS.status_record_bytes)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Size = Annotated[int, Meta(ge=0, le=2**53)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Provider(_Message):
    """A peer that may have what is wanted, and its addresses: a referral, to be dialled and checked."""

    peer: PeerText
    addresses: Annotated[list[AddressText], Meta(max_length=8)]


class Find(_Message, tag="find", tag_field="kind"):
    """A request for artifacts by exactly one of `document`, `artifact` and `chain` (prefix digests, one a block).

    With the reader's `model` and `dtype` the first artifact that fits comes with its manifest, without a `model` the
    first of all.  `bulk` asks for a bearer token, so that the reader can fetch at once from a peer that has an artifact
    whole, and join later.
    """

    agent: AgentText
    document: DocumentText | None = None
    artifact: CidText | None = None
    chain: Annotated[list[Digest], Meta(max_length=LIMITS.chain_digests)] | None = None
    model: Digest | None = None
    dtype: DtypeText | None = None
    bulk: bool = False


class GetManifest(_Message, tag="manifest", tag_field="kind"):
    """A request for the signed envelope of one artifact."""

    artifact: CidText


class Join(_Message, tag="join", tag_field="kind"):
    """A request to fetch an artifact: it lists the reader among those that fetch it, and asks which chunks are here.

    `me` is the reader itself, as a referral for other readers of the artifact; `bulk` asks for a bearer token.
    """

    artifact: CidText
    me: Provider
    bulk: bool


class Have(_Message, tag="have", tag_field="kind"):
    """A request for the chunks of an artifact that a peer has by now, and for other peers that have some."""

    artifact: CidText


class GetChunk(_Message, tag="chunk", tag_field="kind"):
    """A request for the wire bytes of one chunk, by its content id."""

    cid: CidText


class GetPrefixIndex(_Message, tag="catalogue", tag_field="kind"):
    """A request for a peer's prefix index, unless it is still the `version` that the reader has (0 for none)."""

    version: Size


Request = Find | GetManifest | Join | Have | GetChunk | GetPrefixIndex


class Found(_Message):
    """An artifact that a peer offers, as a hint: only the manifest decides.

    `complete` is False while the peer is still fetching it itself; `shared_blocks` counts the blocks of the reader's
    chain that the artifact shares.
    """

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
    """The port and the certificate with which `peer` serves HTTPS, signed by its node key; see `net.bulk.identity`.

    `certificate` is the SHA-256 of its DER form, `issued` is in Unix seconds.
    """

    peer: PeerText
    port: Port
    certificate: Digest
    issued: Size
    signature: Signature


class BulkTicket(_Message):
    """A bearer token for the bulk channel, valid while this stream is open and for at most `seconds`."""

    token: TokenText
    seconds: Size
    record: BulkRecord


class FindReply(_Message):
    """The answer to `Find`: what the peer has, and which other peers may have more.

    `asks` is the peer's price for a gigabyte, in millionths of a US dollar.  `heads` holds publisher status records: of
    the answering node's own publisher, and of the publishers of what it found.  `audits` holds signed statements of
    peers that verified the requested artifact or found it wrong, which the answering node need not have any more.
    `grant` is present if a token was requested and something found is here whole.
    """

    agent: AgentText
    publisher: PeerText
    found: Annotated[list[Found], Meta(max_length=LIMITS.find_results)]
    providers: Annotated[list[Provider], Meta(max_length=LIMITS.find_results)]
    asks: Size = 0
    heads: Annotated[list[HeadBytes], Meta(max_length=LIMITS.status_records_sent)] = []
    audits: Annotated[list[AuditBytes], Meta(max_length=LIMITS.audits_sent)] = []
    grant: BulkTicket | None = None


class JoinReply(_Message):
    """The answer to `Join`: bit i of `have` is chunk i of the manifest, `peers` are others that fetch or have it."""

    have: Bitmap
    peers: Annotated[list[Provider], Meta(max_length=LIMITS.find_results)]
    grant: BulkTicket | None


class HaveReply(_Message):
    """The answer to `Have`: bit i of `have` is chunk i of the manifest, `peers` are others that fetch or have it."""

    have: Bitmap
    peers: Annotated[list[Provider], Meta(max_length=LIMITS.find_results)]


class PrefixIndexReply(_Message):
    """The answer to `GetPrefixIndex`: a prefix index of sorted keys, 8 bytes each.

    `keys` is None if the reader's version is the current one.
    """

    version: Size
    keys: Annotated[bytes, Meta(max_length=LIMITS.prefix_index_bytes)] | None


class Announce(_Message):
    """A gossip message: a new artifact, and where its provider can be dialled."""

    artifact: CidText
    document: DocumentText | None
    provider: Provider


T = TypeVar("T")


def encode_request(request: Request) -> bytes:
    """Encode a request as msgpack."""
    return wire.pack(wire.plain(request))


def decode_request(frame: bytes) -> Request:
    """Decode a request.  Raises `MalformedMessage` if it is none, or larger than its kind may be."""
    if len(frame) > LIMITS.request_bytes:
        raise MalformedMessage(f"a request of {len(frame)} bytes is over the cap")
    request: Request = wire.unpack(frame, Request, MalformedMessage, items=LIMITS.request_items)  # type: ignore[arg-type]
    if len(frame) > LIMITS.short_request_bytes and not (isinstance(request, Find) and request.chain):
        raise MalformedMessage(f"a request of {len(frame)} bytes is over the cap of its kind")
    return request


def encode_ok(body: Any) -> bytes:
    """Encode a successful response with this body."""
    return wire.pack({"ok": wire.plain(body)})


def encode_error(error: KvswapError) -> bytes:
    """Encode an error response: the error's code, and its message cut to 500 characters."""
    return wire.pack({"error": {"code": error.code, "message": error.message[:500]}})


class _RemoteError(msgspec.Struct, frozen=True):
    """An error in a peer's response; keys other than these are skipped."""

    code: Annotated[str, Meta(max_length=64)] = ""
    message: Annotated[str, Meta(max_length=2_000)] = ""


@lru_cache(maxsize=32)
def _response(kind: Any) -> Any:
    unset = msgspec.UNSET
    fields = [("ok", kind | msgspec.UnsetType, unset), ("error", _RemoteError | msgspec.UnsetType, unset)]
    return msgspec.defstruct("Response", fields, frozen=True, forbid_unknown_fields=True)


@dataclass(frozen=True, slots=True)
class Cap:
    """The largest size of a response, in bytes and in msgpack items."""

    size: int
    items: int = LIMITS.message_items


_CAPS: dict[Any, Cap] = {
    FindReply: Cap(LIMITS.find_reply_bytes, LIMITS.reply_items),
    JoinReply: Cap(LIMITS.join_reply_bytes, LIMITS.reply_items),
    HaveReply: Cap(LIMITS.join_reply_bytes, LIMITS.reply_items),
    PrefixIndexReply: Cap(LIMITS.prefix_index_bytes + LIMITS.error_bytes),
    bytes: Cap(LIMITS.message_bytes),  # an envelope; a chunk's own length is known
}


def cap_of(kind: Any) -> Cap:
    """Return the largest size of a response of this type; a longer frame is not even read."""
    return _CAPS[kind]


def decode_response(frame: bytes, kind: type[T]) -> T:
    """Decode a response and return its body of type `kind`.

    Raises the error that the peer sent, as `NotFound`, `PeerBusy` or `PeerError`; raises `MalformedMessage` if it is no
    response.
    """
    answer = wire.unpack(frame, _response(cast(Any, kind)), MalformedMessage, items=cap_of(kind).items)
    if (answer.ok is msgspec.UNSET) == (answer.error is msgspec.UNSET):
        raise MalformedMessage("a response is ok or error")
    if answer.error is not msgspec.UNSET:
        message = f"the peer answered: {answer.error.message[:500]}"
        kinds = {NotFound.code: NotFound, PeerBusy.code: PeerBusy}
        raise kinds.get(answer.error.code, PeerError)(message)
    body: T = answer.ok
    return body


def encode_announce(announce: Announce) -> bytes:
    """Encode an announcement as msgpack."""
    return wire.pack(wire.plain(announce))


def decode_announce(data: bytes) -> Announce:
    """Decode an announcement.  Raises `MalformedMessage` if it is none, or larger than 8 KiB."""
    if len(data) > 8192:
        raise MalformedMessage("an announcement is over the cap")
    return wire.unpack(data, Announce, MalformedMessage, items=64)
