"""A home with a store as large as one becomes in years: real signed manifests, index rows written in bulk.

Chunks have eight bytes: it is what grows with their number that is looked at, not the disk's rate.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from kvswap.artifact import dsse
from kvswap.core.ids import Cid
from kvswap.exchange.node.identity import keys_of
from kvswap.exchange.node.listing import listing_of
from kvswap.store import Listing, Store
from kvswap.store.files import chunk_path
from kvswap.store.rebuild import list_artifact
from kvswap.trust import Key, read_statement
from tests.support import FULL, Ingested, key, make_artifact

_TOGETHER = 500  # artifacts to a transaction


@dataclass(frozen=True, slots=True)
class Large:
    """What was made: ids of the node's own artifacts, and of those of `other`, whom it need not trust."""

    own: list[str]
    others: list[str]
    other: str


def fill(home: Path, artifacts: int, chunks_each: int = 30, *, files: bool = True) -> Large:
    """Fill the store of a node that is not running; every other artifact is its own.

    Without `files` the chunks are listed and not on disk.
    """
    _, own = keys_of(home)
    other = key(77)
    made = make_artifact(own, tokens=8 * chunks_each, block_tokens=8, specs=(FULL,))
    store = Store.open(home / "store", 10**13)
    ids: tuple[list[str], list[str]] = ([], [])
    try:
        for start in range(0, artifacts, _TOGETHER):
            batch = [_another(made, n, (own, other)[n % 2]) for n in range(start, min(artifacts, start + _TOGETHER))]
            _list(store, batch)
            for number, (listing, bodies) in enumerate(batch, start):
                ids[number % 2].append(listing.row.id)
                path = store.root / "artifacts" / f"{listing.row.id}.kvm"
                path.write_bytes(listing.envelope)
                os.utime(path, (listing.row.used, listing.row.added))
                for cid, body in bodies.items() if files else ():
                    _write(chunk_path(store.chunks_directory, cid), body)
    finally:
        store.close()
    return Large(*ids, str(other.peer_id))


def _another(made: Ingested, number: int, signer: Key) -> tuple[Listing, dict[Cid, bytes]]:
    """The same artifact of another document, with other chunks."""
    old = made.manifest
    bodies = [b"%08d" % (number * len(old.chunks) + place) for place in range(len(old.chunks))]
    cids = [Cid.of(body) for body in bodies]
    chunks = [
        msgspec.structs.replace(ref, cid=bytes(cid), length=len(body))
        for ref, cid, body in zip(old.chunks, cids, bodies, strict=True)
    ]
    assert old.document is not None
    sha256 = hashlib.sha256(b"document %d" % number).digest()
    chain = [hashlib.sha256(b"%d %d" % (number, block)).digest() for block in range(len(old.prefix.chain))]
    manifest = msgspec.structs.replace(
        old,
        chunks=chunks,
        document=msgspec.structs.replace(old.document, sha256=sha256),
        prefix=msgspec.structs.replace(old.prefix, chain=chain),
        publisher=str(signer.peer_id),
        life=msgspec.structs.replace(old.life, expires=old.life.issued + 30 * 86_400),
    )
    envelope = dsse.seal(manifest.encode(), manifest.publisher, signer.sign)
    listing = listing_of(read_statement(envelope))
    return listing, dict(zip(cids, bodies, strict=True))


def _list(store: Store, batch: list[tuple[Listing, dict[Cid, bytes]]]) -> None:
    now = time.time()
    with store._index.transaction() as db:
        for listing, bodies in batch:
            rows = [(cid.digest, len(body), now) for cid, body in bodies.items()]
            db.executemany("INSERT OR IGNORE INTO chunks (cid, length, added) VALUES (?, ?, ?)", rows)
            list_artifact(db, listing)


def _write(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, data)
    os.close(descriptor)
