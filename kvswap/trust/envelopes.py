"""Signed statements of any kind: a DSSE envelope, a signature by the key that it names, and a payload."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvswap.artifact import dsse
from kvswap.core import wire
from kvswap.core.documents import check_written
from kvswap.core.errors import IntegrityError, MalformedManifest, UsageError
from kvswap.core.ids import Cid, PeerId
from kvswap.core.text import printable
from kvswap.trust.keys import Key, check_signature

TEXT = 256  # characters of a text in a statement


def open_signed(data: bytes, kind: str = dsse.PAYLOAD_TYPE, most: int | None = None) -> tuple[str, bytes]:
    """Check the signature of an envelope and return the signer's PeerId and the payload.

    `kind` is the payload type that is expected, `most` the largest size in bytes.  The caller still has to compare the
    signer with the author that the payload names (`require_signer`).  Raises `MalformedManifest` or `IntegrityError`.
    """
    if most is not None and len(data) > most:
        raise MalformedManifest(f"a statement of {len(data)} bytes is over the cap of {most}")
    envelope = dsse.open_envelope(data, kind)
    signature = envelope.signatures[0]
    try:
        signer = PeerId.parse(signature.keyid)
    except UsageError as error:
        raise MalformedManifest("the signature names no Ed25519 key", field="keyid") from error
    check_signature(signer.public_key, signature.sig, dsse.pae(envelope.payload_type, envelope.payload))
    return str(signer), envelope.payload


def require_signer(signer: str, named: str, role: str) -> None:
    """Raise `IntegrityError` unless the signer is the author that the payload names; `role` is for the message."""
    if signer != named:
        raise IntegrityError(
            f"signed by {signer}, but the {role} it names is {named}",
            cause=f"somebody signed another {role}'s statement",
        )


def kind_of(data: bytes) -> str:
    """Return the payload type that an envelope names, without checking anything else.  Raises `MalformedManifest`."""
    return dsse.read_envelope(data).payload_type


def check_cid(raw: bytes, field: str) -> None:
    """Raise `MalformedManifest` for bytes that are not a CID of the one form in use; `field` is for the message."""
    try:
        Cid.from_bytes(raw)
    except UsageError as error:
        raise MalformedManifest(f"{field}: {error.message}", field=field) from error


def is_signed(data: bytes, kind: str) -> bool:
    """Return True if this is a statement of that kind with a valid signature, whatever its content and version."""
    try:
        open_signed(data, kind)
    except (MalformedManifest, IntegrityError):
        return False
    return True


def names(data: bytes, artifact: str) -> bool:
    """Return True if this is a signed statement whose payload has the id `artifact`."""
    try:
        _, payload = open_signed(data, kind_of(data))
    except (MalformedManifest, IntegrityError):
        return False
    return str(Cid.of(payload)) == artifact


def reason(text: str) -> str:
    """Escape a reason's control characters and cut it to `TEXT` characters, so that it may be signed.

    The text may come from a library or from a peer.
    """
    return printable(text)[:TEXT]


def sign_value(value: Any, key: Key, kind: str) -> bytes:
    """Encode a struct and sign it in an envelope.

    Raises `UsageError` for texts with control characters, which readers refuse.
    """
    plain = wire.plain(value)
    for name, text in _texts(plain):
        check_written(text, name)
    return sign(wire.pack(plain), key, kind)


def _texts(value: Any, name: str = "a field") -> Iterator[tuple[str, str]]:
    """Yield every text in a plain value, with the name of its field."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for field, inner in value.items():
            yield from _texts(inner, field)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, name)


def sign(payload: bytes, key: Key, kind: str) -> bytes:
    """Sign a payload and return the envelope."""
    return dsse.seal(payload, str(key.peer_id), key.sign, kind)
