"""Groups: who holds a 32-byte key can publish for, and read from, the others who hold it; nobody else can.

From the key come the keys of sealed artifacts (HKDF-SHA256, RFC 5869, salted for each), and the names under
which members find each other's documents (HMAC-SHA256): the same for every member, and to others numbers that
do not lead back to a document, a model or a beginning, even if they have a guess.  The key itself decides who
is a member: there is no list, and who is to be left out is left out by a new group.
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
from kvswap.artifact.sealing import MARK_BYTES, SALT_BYTES, Seal
from kvswap.core.errors import NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.trust.keys import private_text, write_private

KEY_BYTES = 32
SEALED_DTYPE = "sealed"  # in the place of a dtype, where it is not told
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_PREFIX = "kvswap-group-1"


class Names:
    """What documents, beginnings and models are called when peers are asked for them: by their own digests."""

    def document(self, reference: str) -> str:
        return reference

    def chain(self, digests: Sequence[bytes]) -> list[bytes]:
        return list(digests)

    def model(self, identity: bytes, dtype: str) -> tuple[bytes, str]:
        """Identity and dtype, as they are told."""
        return identity, dtype


OPEN = Names()


@dataclass(frozen=True)
class Group(Names):
    """A group, under the name that this node has for it."""

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
        return "sha256:" + self._named(b"document", reference.encode()).hex()

    def chain(self, digests: Sequence[bytes]) -> list[bytes]:
        return [self._named(b"chain", digest) for digest in digests]

    def model(self, identity: bytes, dtype: str) -> tuple[bytes, str]:
        return self._named(b"model", identity + dtype.encode()), SEALED_DTYPE

    def seal(self, salt: bytes) -> Seal:
        """The key of the artifact with this salt."""
        return Seal(self._derive(salt, b"kvswap group artifact v1"))

    def mark(self, salt: bytes) -> bytes:
        """What tells members that such an artifact is theirs."""
        return self._derive(salt, b"kvswap group mark v1", MARK_BYTES)

    def to_text(self) -> str:
        """The secret, on one line."""
        return f"{_PREFIX} {self.name} {self.key.hex()}"

    @classmethod
    def from_text(cls, text: str, name: str | None = None) -> Group:
        """Raises `UsageError`; the secret is in no message."""
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
    """A group and a fresh salt: how one artifact is sealed, once."""

    group: Group
    salt: bytes
    seal: Seal

    @classmethod
    def new(cls, group: Group) -> Sealing:
        salt = os.urandom(SALT_BYTES)
        return cls(group, salt, group.seal(salt))

    def payload(self, manifest: Manifest) -> bytes:
        """What is to be signed."""
        return self.seal.close_manifest(manifest, self.salt, self.group.mark(self.salt))


Keys = Callable[[bytes, bytes], tuple[Seal, Names] | None]
"""(salt, mark) -> the key of such an artifact and the names its group uses; None to who is no member."""


def no_keys(salt: bytes, mark: bytes) -> tuple[Seal, Names] | None:
    """Of who is in no group."""
    return None


def one_key(key: bytes | None) -> Keys:
    """Of who was given the key of the one artifact that is to be read."""
    return lambda salt, mark: (Seal(key), OPEN) if key is not None else None


def keys_of(groups: Iterable[Group]) -> Keys:
    """Of a member of these."""

    def find(salt: bytes, mark: bytes) -> tuple[Seal, Names] | None:
        group = next((g for g in groups if hmac.compare_digest(g.mark(salt), mark)), None)
        return (group.seal(salt), group) if group is not None else None

    return find


def _stored(path: Path) -> Group:
    try:
        return Group.from_text(private_text(path))
    except UsageError as error:
        error.about(str(path))
        raise


class Groups:
    """The groups of a node: a file each, mode 0600, in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        files = sorted(directory.glob("*.group"))
        self._groups = {g.name: g for g in map(_stored, files)}

    def all(self) -> list[Group]:
        return list(self._groups.values())

    def get(self, name: str) -> Group:
        """Raises `NotFound`."""
        try:
            return self._groups[name]
        except KeyError:
            raise NotFound(
                f"this node is in no group {name[:80]!r}", hint="kvswap group ls; kvswap group new, or import"
            ) from None

    def names(self, name: str | None) -> list[Names]:
        """Under which names to look something up: those of one group, or those of all and then the open ones.

        The open ones last, so that a member does not tell everybody what its group is reading.
        """
        return [self.get(name)] if name else [*self.all(), OPEN]

    def keys(self, salt: bytes, mark: bytes) -> tuple[Seal, Names] | None:
        """See `Keys`."""
        return keys_of(self._groups.values())(salt, mark)

    def new(self, name: str) -> Group:
        """A group with a key of its own.  Raises `UsageError` when the name is taken."""
        return self.add(Group(_checked(name), os.urandom(KEY_BYTES)))

    def add(self, group: Group) -> Group:
        """Raises `UsageError` when there is another of this name, or too many."""
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
        """Forget a key: what it opened can not be read here any more.  Raises `NotFound`."""
        group = self.get(name)
        (self._directory / f"{name}.group").unlink(missing_ok=True)
        del self._groups[name]
        return group

    def rows(self) -> list[dict[str, Any]]:
        """For people; no secrets.  `mark`: equal for members of the same group, whatever they call it."""
        return [{"name": g.name, "mark": g.mark(b"").hex()[:16]} for g in self._groups.values()]
