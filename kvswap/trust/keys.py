"""Ed25519 keys (RFC 8032): made, kept with mode 0600, and checked.

`cryptography` accepts public keys of small order, for which one signature verifies under any message; `check_signature`
refuses them (the points are those of libsodium's and Wycheproof's lists).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from kvswap.core.atomic import sync_directory, write_atomic
from kvswap.core.errors import IntegrityError, UsageError
from kvswap.core.failures import Misplaced
from kvswap.core.files import open_regular
from kvswap.core.ids import PeerId
from kvswap.core.limits import LIMITS

_P = 2**255 - 19
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        _P - 1,
        _P,
        _P + 1,
        int.from_bytes(bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"),
        int.from_bytes(bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"), "little"),
    }
)


def is_small_order(public_key: bytes) -> bool:
    """Return True for the encodings of the eight points whose order divides 8, canonical or not."""
    return int.from_bytes(public_key, "little") & ((1 << 255) - 1) in _SMALL_ORDER_Y


@dataclass(frozen=True)
class Key:
    """A private Ed25519 key."""

    _private: Ed25519PrivateKey

    @classmethod
    def generate(cls) -> Key:
        """Generate a random key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Key:
        """Make the key of a 32-byte seed.  Raises `ValueError` for another length."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def seed(self) -> bytes:
        """The 32-byte seed, which the key file and libp2p hold as well."""
        return self._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    @cached_property
    def peer_id(self) -> PeerId:
        """The PeerId of the public key."""
        return PeerId(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, message: bytes) -> bytes:
        """Sign a message; the signature has 64 bytes."""
        return self._private.sign(message)


def check_signature(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Raise `IntegrityError` unless `signature` is `public_key`'s over `message`."""
    if is_small_order(public_key):
        raise IntegrityError("the signing key is a point of small order", cause="a forged key")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise IntegrityError(
            "the signature does not match", cause="the manifest was changed after it was signed"
        ) from error


def replace(path: Path, key: Key, retired: Path) -> None:
    """Write another key into a key file; the old file is kept in the directory `retired` under its PeerId."""
    old = load_or_create(path)
    retired.mkdir(mode=0o700, exist_ok=True)
    kept = retired / f"{old.peer_id}.key"
    if not kept.exists():
        kept.hardlink_to(path)
    write_private(path, key.seed.hex() + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically by one of mode 0600."""
    write_atomic(path, text.encode())


def private_text(path: Path) -> str:
    """Read a text file that only its owner may read.

    Raises `UsageError` when others may read it, when it is not a regular file, or not text.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & 0o077:
                raise UsageError(f"the key file {path} has mode {mode:o}: others may read it", hint=f"chmod 600 {path}")
            return file.read(LIMITS.config_bytes).decode().strip()
    except Misplaced as error:
        raise UsageError(
            f"the key file {path} cannot be read: {error.strerror}",
            cause="something else lies in its place",
            hint=f"mv {path} elsewhere, and put a copy of the key in its place",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the key file {path} is not text", cause="a damaged file, or another than meant") from error


def load_or_create(path: Path) -> Key:
    """Load the key from a file, or create the file with a new key.

    Raises `UsageError` when others may read the file, or it holds no key.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        text = private_text(path)
        try:
            return Key.from_seed(bytes.fromhex(text))
        except ValueError as error:
            raise UsageError(f"the key file {path} does not hold 64 hex digits") from error
    key = Key.generate()
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(key.seed.hex() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)  # a key file that is cut off is of no use
        raise
    sync_directory(path.parent)
    return key
