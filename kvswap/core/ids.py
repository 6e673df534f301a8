"""Identifiers as values: document digests, CIDs, PeerIds, and what a user may pass as a reference.

* A *document digest* is `sha256:<64 hex>` of the document's bytes (`sha256sum` prints the hex).
* A *CID* is CIDv1, raw codec, BLAKE3 multihash (https://github.com/multiformats/cid); text form
  base32 lower case with the multibase prefix `b`.  Chunks and artifacts are named this way.
* A *PeerId* is the libp2p id of an Ed25519 public key: base58btc of the identity multihash of its
  protobuf form (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md): `12D3KooW…`.

Parsing is strict: one text form per value, so an id can be a file name or a database key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from blake3 import blake3

from kvswap.core.errors import UsageError

_CID_PREFIX = bytes([0x01, 0x55, 0x1E, 0x20])  # CIDv1, raw, BLAKE3, 32 bytes
_PEER_PREFIX = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])  # identity multihash of an Ed25519 key
_B58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DOCUMENT = re.compile(r"sha256:[0-9a-f]{64}")
_CID_TEXT = re.compile(r"b[a-z2-7]{58}")


def blake3_digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the 32-byte BLAKE3 digest of `data`."""
    return blake3(data).digest()


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """A content identifier, held as its 32-byte BLAKE3 digest."""

    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise UsageError(f"a CID holds a 32-byte digest, not {len(self.digest)} bytes")

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Cid:
        """Compute the CID of some bytes."""
        return cls(blake3_digest(data))

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Parse the canonical text form.  Raises `UsageError` for anything else."""
        if not _CID_TEXT.fullmatch(text):
            raise UsageError(f"not a kvswap id: {text[:80]!r}", cause="ids look like bafkr4i…")
        try:
            raw = base64.b32decode(text[1:].upper() + "=" * (-len(text[1:]) % 8))
        except binascii.Error as error:
            raise UsageError(f"not a kvswap id: {text!r}") from error
        cid = cls.from_bytes(raw)
        if str(cid) != text:  # base32 leaves spare bits: refuse the non-canonical spellings
            raise UsageError(f"not the canonical spelling of an id: {text!r}")
        return cid

    @classmethod
    def from_bytes(cls, raw: bytes) -> Cid:
        """Parse the 36-byte binary form.  Raises `UsageError` for anything else."""
        if len(raw) != 36 or not raw.startswith(_CID_PREFIX):
            raise UsageError("not a CIDv1 of raw bytes under BLAKE3")
        return cls(raw[4:])

    def __bytes__(self) -> bytes:
        return _CID_PREFIX + self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(bytes(self)).decode().lower().rstrip("=")


def _b58encode(raw: bytes) -> str:
    number = int.from_bytes(raw, "big")
    digits = ""
    while number:
        number, rest = divmod(number, 58)
        digits = _B58[rest] + digits
    return "1" * (len(raw) - len(raw.lstrip(b"\0"))) + digits


def _b58decode(text: str) -> bytes:
    number = 0
    for char in text:
        number = number * 58 + _B58.index(char)
    body = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return b"\0" * (len(text) - len(text.lstrip("1"))) + body


_ASK = "kvswap id, on the node that is meant"


@dataclass(frozen=True, slots=True, order=True)
class PeerId:
    """The libp2p id of an Ed25519 key, held as the 32-byte public key."""

    public_key: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != 32:
            raise UsageError("an Ed25519 public key has 32 bytes")

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Parse the text form `12D3KooW…`.  Raises `UsageError` for other keys and spellings."""
        if not 50 <= len(text) <= 54 or any(c not in _B58 for c in text):
            raise UsageError(f"not a peer id: {text[:80]!r}", cause="ids look like 12D3KooW…", hint=_ASK)
        raw = _b58decode(text)
        if len(raw) != 38 or not raw.startswith(_PEER_PREFIX):
            raise UsageError(f"not the peer id of an Ed25519 key: {text!r}", cause="a typing error", hint=_ASK)
        return cls(raw[6:])

    def __str__(self) -> str:
        return _b58encode(_PEER_PREFIX + self.public_key)


def document_digest(data: bytes) -> str:
    """Return the digest of a document's bytes as `sha256:<hex>`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_document(text: str) -> str:
    """Return a document digest unchanged if it is spelt as one.  Raises `UsageError` otherwise."""
    if not _DOCUMENT.fullmatch(text):
        raise UsageError(f"not a document digest: {text[:80]!r}", cause="it is sha256: and 64 lower-case hex digits")
    return text


def parse_reference(text: str) -> str | Cid:
    """Parse a reference of the wire or the API: a document digest (`str`) or an artifact id (`Cid`).

    Raises `UsageError` for anything else.
    """
    return parse_document(text) if text.startswith("sha256:") else Cid.parse(text)


def document_key(document: str) -> bytes:
    """Return the 32-byte DHT key of `sha256:<hex>`."""
    return bytes.fromhex(document.removeprefix("sha256:"))


def peer_of(address: str) -> str:
    """Return the PeerId at the end of a multiaddr.  Raises `UsageError`."""
    _, found, peer = address.rpartition("/p2p/")
    if not found:
        raise UsageError(f"the address {address!r} has no /p2p/ part", hint="kvswap id  prints whole addresses")
    return str(PeerId.parse(peer))
