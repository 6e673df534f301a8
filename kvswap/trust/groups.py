"""Groups of readers: the holders of a 32-byte key publish for each other; nobody else can read what they publish.

The keys of encrypted artifacts are derived from it (HKDF-SHA256, RFC 5869, salted for each), and the blinded
identifiers under which members find each other's documents (HMAC-SHA256): equal for every member, and to others numbers
that do not lead back to a document, a model or a prefix, even if they have a guess.  The key alone decides who is a
member: there is no list, and to leave a member out one makes a new group.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kvswap.artifact.manifest import Manifest
from kvswap.artifact.sealing import GROUP_TAG_BYTES, SALT_BYTES, Seal
from kvswap.core.errors import NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.trust.keys import private_text, write_private

KEY_BYTES = 32
SEALED_DTYPE = "sealed"  # stands for a dtype that peers are not told
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "kvswap-group-1"


class Identifiers:
    """The identifiers by which peers are asked for documents, prefixes and models: here the public digests."""

    def document(self, reference: str) -> str:
        """Return the identifier of a document, given its reference `sha256:<hex>`."""
        return reference

    def chain(self, digests: Sequence[bytes]) -> list[bytes]:
        """Return the identifiers of a document's prefixes, given the chained digests of its blocks."""
        return list(digests)

    def model(self, identity: bytes, dtype: str) -> tuple[bytes, str]:
        """Return the model identity and dtype as peers are told them."""
        return identity, dtype


PUBLIC = Identifiers()


@dataclass(frozen=True)
class Group(Identifiers):
    """A group of readers under its local name; as `Identifiers` it gives blinded identifiers (HMAC-SHA256)."""

    name: str
    key: bytes = field(repr=False)

    def _derive(self, salt: bytes | None, info: bytes, length: int = 32) -> bytes:
        return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(self.key)

    @cached_property
    def _naming(self) -> bytes:
        return self._derive(None, b"kvswap group names v1")

    def _named(self, kind: bytes, value: bytes) -> bytes:
        return hmac.digest(self._naming, kind + b"\0" + value, "sha256")

    def document(self, reference: str) -> str:
        """Return the blinded identifier of a document; it has the form of a reference."""
        return "sha256:" + self._named(b"document", reference.encode()).hex()

    def chain(self, digests: Sequence[bytes]) -> list[bytes]:
        """Return the blinded identifiers of a document's prefixes."""
        return [self._named(b"chain", digest) for digest in digests]

    def model(self, identity: bytes, dtype: str) -> tuple[bytes, str]:
        """Return the blinded identity of a model and dtype, and `SEALED_DTYPE` in the place of the dtype."""
        return self._named(b"model", identity + dtype.encode()), SEALED_DTYPE

    def seal(self, salt: bytes) -> Seal:
        """Derive the encryption key of the artifact with this salt."""
        return Seal(self._derive(salt, b"kvswap group artifact v1"))

    def tag(self, salt: bytes) -> bytes:
        """Derive the tag by which members recognise the artifact with this salt as their group's."""
        return self._derive(salt, b"kvswap group mark v1", GROUP_TAG_BYTES)

    def to_text(self) -> str:
        """Return the secret on one line, as `kvswap group export` prints it."""
        return f"{_PREFIX} {self.name} {self.key.hex()}"

    @classmethod
    def from_text(cls, text: str, name: str | None = None) -> Group:
        """Parse the line that `to_text` makes; `name` overrides the name in it.

        Raises `UsageError`, whose message never holds the secret.
        """
        parts = text.split()
        if len(parts) != 3 or parts[0] != _PREFIX or not re.fullmatch(r"[0-9a-f]{64}", parts[2]):
            raise UsageError(
                "this is not a group's key",
                cause="a key is the one line that export prints",
                hint="kvswap group export",
            )
        return cls(_checked(name or parts[1]), bytes.fromhex(parts[2]))


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no name for a group", cause="letters, digits, dot, dash, underscore")
    return name


@dataclass(frozen=True, slots=True)
class Sealing:
    """The encryption of one artifact: a group, a fresh salt and the key derived from both.  Used once."""

    group: Group
    salt: bytes
    seal: Seal

    @classmethod
    def new(cls, group: Group) -> Sealing:
        """Draw a salt and derive the key for one artifact of the group."""
        salt = os.urandom(SALT_BYTES)
        return cls(group, salt, group.seal(salt))

    def payload(self, manifest: Manifest) -> bytes:
        """Encrypt a manifest into the payload that the publisher signs."""
        return self.seal.close_manifest(manifest, self.salt, self.group.tag(self.salt))


Keys = Callable[[bytes, bytes], tuple[Seal, Identifiers] | None]
"""A look-up by (salt, tag of a group) of the encryption key and the group's identifiers; None to non-members."""


def no_keys(salt: bytes, tag: bytes) -> tuple[Seal, Identifiers] | None:
    """Find no key: the `Keys` of a node that is in no group."""
    return None


def one_key(key: bytes | None) -> Keys:
    """Make a `Keys` that opens the one artifact whose encryption key is given; None opens nothing."""
    return lambda salt, tag: (Seal(key), PUBLIC) if key is not None else None


def keys_of(groups: Iterable[Group]) -> Keys:
    """Make a `Keys` that opens the artifacts of these groups."""

    def find(salt: bytes, tag: bytes) -> tuple[Seal, Identifiers] | None:
        group = next((g for g in groups if hmac.compare_digest(g.tag(salt), tag)), None)
        return (group.seal(salt), group) if group is not None else None

    return find


def _stored(path: Path) -> Group:
    try:
        return Group.from_text(private_text(path))
    except UsageError as error:
        error.about(str(path))
        raise


class Groups:
    """The groups of a node, one file of mode 0600 each in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        files = sorted(directory.glob("*.group"))
        self._groups = {g.name: g for g in map(_stored, files)}

    def all(self) -> list[Group]:
        """List the groups by the order of their files, then as they were added."""
        return list(self._groups.values())

    def get(self, name: str) -> Group:
        """Return the group of this name.  Raises `NotFound` when there is none."""
        try:
            return self._groups[name]
        except KeyError:
            raise NotFound(
                f"this node is in no group {name[:80]!r}", hint="kvswap group ls; kvswap group new, or import"
            ) from None

    def identifiers(self, name: str | None) -> list[Identifiers]:
        """List the identifiers to look something up by: of the named group, or of all groups and then the public ones.

        The public ones come last, so that a member does not tell everybody what its group is reading.
        """
        return [self.get(name)] if name else [*self.all(), PUBLIC]

    def keys(self, salt: bytes, tag: bytes) -> tuple[Seal, Identifiers] | None:
        """Find the key of the artifact with this salt and tag, as `Keys` describes."""
        return keys_of(self._groups.values())(salt, tag)

    def new(self, name: str) -> Group:
        """Create a group with a random key.  Raises `UsageError` when the name is taken."""
        return self.add(Group(_checked(name), os.urandom(KEY_BYTES)))

    def add(self, group: Group) -> Group:
        """Add a group and write its file.

        Raises `UsageError` when another group has this name, or when there are too many.
        """
        known = self._groups.get(group.name)
        if known is not None and known.key != group.key:
            raise UsageError(
                f"there is another group {group.name!r} here", hint="kvswap group import --name OTHER, or group rm"
            )
        if known is None and len(self._groups) >= LIMITS.groups:
            raise UsageError(f"a node is in {LIMITS.groups} groups at most", hint="kvswap group rm")
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._directory / f"{group.name}.group", group.to_text() + "\n")
        self._groups[group.name] = group
        return group

    def remove(self, name: str) -> Group:
        """Delete a group's key: what it opened can no longer be read here.  Raises `NotFound`."""
        group = self.get(name)
        (self._directory / f"{name}.group").unlink(missing_ok=True)
        del self._groups[name]
        return group

    def rows(self) -> list[dict[str, Any]]:
        """List the groups without their secrets; `tag` is equal for members of one group, whatever they call it."""
        return [{"name": g.name, "mark": g.tag(b"").hex()[:16]} for g in self._groups.values()]
