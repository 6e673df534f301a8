"""Signed statements of any kind: envelope, signature by the key it names, payload."""

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
    """(signer, payload), the signature checked.  Raises `MalformedManifest` or `IntegrityError`.

    The caller still has to compare the signer with whom the payload says it is by.
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
    """Raise `IntegrityError` unless who signed is who the payload says it is by."""
    if signer != named:
        raise IntegrityError(
            f"signed by {signer}, but the {role} it names is {named}",
            cause=f"somebody signed another {role}'s statement",
        )


def kind_of(data: bytes) -> str:
    """The payload type that an envelope names, nothing else of it checked.  Raises `MalformedManifest`."""
    return dsse.read_envelope(data).payload_type


def check_cid(raw: bytes, field: str) -> None:
    """Raise `MalformedManifest` for bytes that are no CID of ours."""
    try:
        Cid.from_bytes(raw)
    except UsageError as error:
        raise MalformedManifest(f"{field}: {error.message}", field=field) from error


def is_signed(data: bytes, kind: str) -> bool:
    """Say whether this is a statement of that kind by whom it names, whatever it says and in which version."""
    try:
        open_signed(data, kind)
    except (MalformedManifest, IntegrityError):
        return False
    return True


def names(data: bytes, artifact: str) -> bool:
    """Say whether this is a signed statement of that artifact, which is the name of its payload."""
    try:
        _, payload = open_signed(data, kind_of(data))
    except (MalformedManifest, IntegrityError):
        return False
    return str(Cid.of(payload)) == artifact


def reason(text: str) -> str:
    """Word a reason as it may be signed: its control characters escaped, its length that of a text.

    It may hold what a library or somebody else said.
    """
    return printable(text)[:TEXT]


def sign_value(value: Any, key: Key, kind: str) -> bytes:
    """Seal a struct in an envelope.  Raises `UsageError` for texts with control characters, which others refuse."""
    plain = wire.plain(value)
    for name, text in _texts(plain):
        check_written(text, name)
    return sign(wire.pack(plain), key, kind)


def _texts(value: Any, name: str = "a field") -> Iterator[tuple[str, str]]:
    """All texts in plain values, with the names of their fields."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, dict):
        for field, inner in value.items():
            yield from _texts(inner, field)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, name)


def sign(payload: bytes, key: Key, kind: str) -> bytes:
    """The envelope."""
    return dsse.seal(payload, str(key.peer_id), key.sign, kind)
