"""The identity of a node: the key it publishes with, its retired keys, and its own publisher status record."""

from __future__ import annotations

from pathlib import Path

from kvswap.trust import Key, load_or_create
from kvswap.trust.status_record import SignedStatusRecord


class Identity:
    """The keys of one node."""

    def __init__(self, home: Path, publisher: Key, node_key: Key | None) -> None:
        """`node_key` signs the record of the bulk channel; None: the node has no bulk channel."""
        self.publisher = publisher
        self.publisher_file = home / "keys" / "publisher.key"
        retired = sorted((home / "keys" / "retired").glob("*.key"))
        self.retired = {str(key.peer_id): key for key in map(load_or_create, retired)}  # publisher keys of before
        self.node_key = node_key
        self.status_record: tuple[tuple[object, ...], SignedStatusRecord | None] = (
            (),
            None,
        )  # our own, and for what it was signed

    @property
    def own(self) -> str:
        """The PeerId of the publisher key."""
        return str(self.publisher.peer_id)


def keys_of(home: Path) -> tuple[Key, Key]:
    """Return (node key, publisher key) of a home, made on first use."""
    directory = home / "keys"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return load_or_create(directory / "node.key"), load_or_create(directory / "publisher.key")
