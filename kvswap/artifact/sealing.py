"""Sealed artifacts: a manifest and its files, encrypted for those who hold a group's key.

What is signed and given to anybody is a salt, a tag and a ciphertext.  Under the *artifact key*, derived from
the group's key and the salt (`trust.groups`), the ciphertext is the payload of an ordinary manifest, whose
`cid` and `length` are those of the sealed files.  The cipher is ChaCha20-Poly1305 (RFC 8439).  A key serves one
artifact, so the nonce is the place of what is encrypted, and no place is used twice.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from msgspec import Meta

from kvswap.artifact.consistency import parse_manifest
from kvswap.artifact.manifest import ChunkRef, FileRef, Manifest
from kvswap.core import wire
from kvswap.core.errors import IntegrityError, MalformedManifest
from kvswap.core.ids import Cid

KIND = "application/vnd.kvswap.sealed.v1+msgpack"
VERSION = 1
SALT_BYTES = 32
GROUP_TAG_BYTES = 16
TAG_BYTES = 16  # of Poly1305: what sealing adds to a file

ChunkPosition = tuple[int, int, int]
MANIFEST: ChunkPosition = (0, 0, 0)
PREDICTOR: ChunkPosition = (2, 0, 0)
FINGERPRINT: ChunkPosition = (3, 0, 0)


def chunk_position(ref: ChunkRef) -> ChunkPosition:
    """Return the place of a chunk: the nonce that it is encrypted with."""
    return (1, ref.block, ref.run)


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signed payload of a sealed artifact; `mark` is the group tag, by which only members recognise their group."""

    version: int
    salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    mark: Annotated[bytes, Meta(min_length=GROUP_TAG_BYTES, max_length=GROUP_TAG_BYTES)]
    body: bytes

    def encode(self) -> bytes:
        """Encode the payload bytes to sign."""
        return wire.pack(wire.plain(self))

    @classmethod
    def parse(cls, payload: bytes) -> Sealed:
        """Parse the payload of a sealed artifact.  Raises `MalformedManifest`, also for another version."""
        sealed = wire.unpack(payload, cls)
        if sealed.version != VERSION:
            raise MalformedManifest(f"sealed artifact version {sealed.version} is not {VERSION}", field="version")
        return sealed


@dataclass(frozen=True, slots=True)
class Seal:
    """The artifact key of one sealed artifact, 32 bytes."""

    key: bytes = field(repr=False)

    def close(self, place: ChunkPosition, data: bytes) -> bytes:
        """Encrypt the bytes that belong at a place; call it only once for each place."""
        return ChaCha20Poly1305(self.key).encrypt(struct.pack(">III", *place), data, None)

    def open(self, place: ChunkPosition, data: bytes) -> bytes:
        """Decrypt the bytes that belong at a place.

        Raises `IntegrityError` if they were encrypted with another key or for another place, or were changed.
        """
        try:
            return ChaCha20Poly1305(self.key).decrypt(struct.pack(">III", *place), data, None)
        except InvalidTag:
            raise IntegrityError(
                "what is sealed does not open with its group's key", cause="it was sealed wrongly, or for another place"
            ) from None

    def close_manifest(self, manifest: Manifest, salt: bytes, mark: bytes) -> bytes:
        """Encrypt a manifest and return the payload to sign; `mark` is the group tag."""
        return Sealed(VERSION, salt, mark, self.close(MANIFEST, manifest.encode())).encode()

    def open_manifest(self, sealed: Sealed) -> Manifest:
        """Decrypt and check the manifest of a sealed artifact.  Raises `IntegrityError` or `MalformedManifest`."""
        return parse_manifest(self.open(MANIFEST, sealed.body), added=TAG_BYTES)


def open_file(file: ChunkRef | FileRef, place: ChunkPosition, data: bytes, seal: Seal | None) -> bytes:
    """Return the content of one file of an artifact: its wire bytes, checked by digest and decrypted where sealed.

    Raises `IntegrityError` naming the file.
    """
    if len(data) != file.length or Cid.of(data) != file.id:
        what = f"chunk {file.id} (block {file.block})" if isinstance(file, ChunkRef) else f"file {file.id}"
        raise IntegrityError(
            f"{what} does not have its digest", cause="the file was changed on disk", hint="kvswap verify --store"
        )
    return seal.open(place, data) if seal is not None else data
