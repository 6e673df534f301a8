"""DSSE envelopes (https://github.com/secure-systems-lab/dsse), in msgpack instead of JSON.

The exact payload bytes are signed and kept; nothing is ever re-serialised to be verified.  `keyid`
is a hint and decides nothing: whoever reads an envelope must compare the key it names with the
publisher inside the payload.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from kvswap.core import wire
from kvswap.core.errors import MalformedManifest
from kvswap.core.limits import LIMITS

PAYLOAD_TYPE = "application/vnd.kvswap.manifest.v1+msgpack"
_ITEMS = 64


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature: `keyid` is the signer's PeerId, `sig` the 64 bytes of Ed25519."""

    keyid: Annotated[str, Meta(max_length=256)]
    sig: Annotated[bytes, Meta(max_length=256)]


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signed payload."""

    payload_type: Annotated[str, Meta(max_length=256)]
    payload: bytes
    signatures: Annotated[list[Signature], Meta(max_length=4)]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding of a payload (DSSE v1): the bytes that are signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, keyid: str, sign: Callable[[bytes], bytes], kind: str = PAYLOAD_TYPE) -> bytes:
    """Sign `payload` and return the envelope's bytes."""
    signature = {"keyid": keyid, "sig": sign(pae(kind, payload))}
    return wire.pack({"payload_type": kind, "payload": payload, "signatures": [signature]})


def read_envelope(data: bytes) -> Envelope:
    """Parse an envelope of any kind under the size cap; nothing of it is verified."""
    if len(data) > LIMITS.manifest_bytes:
        raise MalformedManifest(f"a statement of {len(data)} bytes is over the cap of {LIMITS.manifest_bytes}")
    return wire.unpack(data, Envelope, items=_ITEMS)


def open_envelope(data: bytes, kind: str = PAYLOAD_TYPE) -> Envelope:
    """Parse an envelope under the size cap; the signature is *not* verified here."""
    envelope = read_envelope(data)
    if envelope.payload_type != kind:
        raise MalformedManifest(
            f"payload type {envelope.payload_type[:80]!r} is not {kind}",
            cause="not a kvswap manifest, or one of a newer version",
            field="payload_type",
        )
    if len(envelope.signatures) != 1:
        raise MalformedManifest("a v1 envelope has exactly one signature", field="signatures")
    return envelope
