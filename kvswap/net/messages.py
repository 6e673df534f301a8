"""What travels in a frame, as values.  Sans-IO: this module only turns structs into bytes and back.

A request is a msgpack map with a `kind`; a response is `{"ok": body}` or `{"error": {code, message}}`.
Requests on one stream are answered in order, so a reader may send several ahead.  Unknown keys are
refused: a change of meaning is a new protocol id, never a new key.

| request  | asks                                             | answer                      |
|----------|--------------------------------------------------|-----------------------------|
| hello    | who are you; measures the round trip             | `HelloReply`                |
| find     | artifacts by document, by id, or by chain digests| `FindReply`                 |
| manifest | the signed envelope of an artifact               | bytes                       |
| have     | which chunks of an artifact are here             | bitmap, bit i = chunk i     |
| chunk    | the wire bytes of one chunk                      | bytes                       |
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from kvswap.core import wire
from kvswap.core.errors import KvswapError, MalformedMessage, NotFound, PeerError
from kvswap.core.limits import LIMITS

PROTOCOL = "/kvswap/exchange/1.0.0"
TOPIC = "/kvswap/artifacts/1"

CidText = Annotated[str, Meta(max_length=64)]
DocumentText = Annotated[str, Meta(max_length=71)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
PeerText = Annotated[str, Meta(max_length=64)]
AddressText = Annotated[str, Meta(max_length=256)]
Size = Annotated[int, Meta(ge=0, le=2**53)]


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Hello(_Message, tag="hello", tag_field="kind"):
    agent: Annotated[str, Meta(max_length=64)]


class Find(_Message, tag="find", tag_field="kind"):
    """Exactly one of the three is given."""

    document: DocumentText | None = None
    artifact: CidText | None = None
    chain: Annotated[list[Digest], Meta(max_length=LIMITS.chain_digests)] | None = None


class GetManifest(_Message, tag="manifest", tag_field="kind"):
    artifact: CidText


class Have(_Message, tag="have", tag_field="kind"):
    artifact: CidText


class GetChunk(_Message, tag="chunk", tag_field="kind"):
    cid: CidText


Request = Hello | Find | GetManifest | Have | GetChunk


class HelloReply(_Message):
    agent: Annotated[str, Meta(max_length=64)]
    publisher: PeerText


class Found(_Message):
    """An artifact somebody offers.  Hints only: the manifest decides."""

    artifact: CidText
    model: Digest
    dtype: Annotated[str, Meta(max_length=16)]
    tokens: Size
    wire_bytes: Size
    publisher: PeerText
    shared_blocks: Size = 0


class Provider(_Message):
    """Somebody else who may have it: a referral, to be dialled and checked."""

    peer: PeerText
    addresses: Annotated[list[AddressText], Meta(max_length=8)]


class FindReply(_Message):
    found: Annotated[list[Found], Meta(max_length=LIMITS.find_results)]
    providers: Annotated[list[Provider], Meta(max_length=LIMITS.find_results)]


class Announce(_Message):
    """Gossip: a new artifact, and where its provider can be dialled."""

    artifact: CidText
    document: DocumentText | None
    provider: Provider


T = TypeVar("T")


def encode_request(request: Request) -> bytes:
    return wire.pack(wire.plain(request))


def decode_request(frame: bytes) -> Request:
    """Raises `MalformedMessage`."""
    if len(frame) > LIMITS.request_bytes:
        raise MalformedMessage(f"a request of {len(frame)} bytes is over the cap")
    request: Request = wire.unpack(frame, Request, MalformedMessage)  # type: ignore[arg-type]
    return request


def encode_ok(body: Any) -> bytes:
    return wire.pack({"ok": wire.plain(body)})


def encode_error(error: KvswapError) -> bytes:
    return wire.pack({"error": {"code": error.code, "message": error.message[:500]}})


def decode_response(frame: bytes, kind: type[T]) -> T:
    """The body of an answer.  Raises `NotFound` or `PeerError` for the peer's error, else `MalformedMessage`."""
    value = wire.parse(frame, MalformedMessage)
    if not isinstance(value, dict) or len(value) != 1:
        raise MalformedMessage("a response is a map of one key")
    if "error" in value:
        error = value["error"] if isinstance(value["error"], dict) else {}
        message = f"the peer answered: {str(error.get('message'))[:500]}"
        raise NotFound(message) if error.get("code") == NotFound.code else PeerError(message)
    if "ok" not in value:
        raise MalformedMessage("a response is ok or error")
    return wire.convert(value["ok"], kind, MalformedMessage)


def encode_announce(announce: Announce) -> bytes:
    return wire.pack(wire.plain(announce))


def decode_announce(data: bytes) -> Announce:
    """Raises `MalformedMessage`."""
    if len(data) > 8192:
        raise MalformedMessage("an announcement is over the cap")
    return wire.unpack(data, Announce, MalformedMessage)
