"""The entry of an artifact in the index of the store, made from its statement."""

from __future__ import annotations

import time

from kvswap.artifact import layout
from kvswap.store import ArtifactRow, Listing, Store
from kvswap.trust import Statement


def listing_of(statement: Statement) -> Listing:
    """Make the index entry of an artifact: its document, chain digests, and which files a reader needs."""
    manifest, identifiers = statement.manifest, statement.identifiers
    now = time.time()
    model, dtype = identifiers.model(manifest.model.digest, manifest.layout.dtype)
    public = statement.seal is None  # the index holds what peers are told: of a sealed artifact nothing but its size
    row = ArtifactRow(
        id=str(statement.artifact),
        document=statement.reference,
        model=model,
        label=manifest.model.label if public else "",
        dtype=dtype,
        tokens=manifest.prefix.tokens if public else 0,
        raw_bytes=manifest.raw_bytes if public else 0,
        wire_bytes=manifest.wire_bytes,
        publisher=manifest.publisher,
        expires=manifest.life.expires,
        added=now,
        used=now,
        pinned=False,
        complete=False,
    )
    files = manifest.files
    needed = {files[i].id for i in layout.needed_files(manifest)}
    others = [f.id for f in files if f.id not in needed]
    return Listing(row, statement.envelope, needed, others, identifiers.chain(manifest.prefix.chain))


def list_artifact(store: Store, statement: Statement, *, durable: bool = True) -> bool:
    """Index an artifact under its document and chain digests; True if all that a reader needs is here.

    `durable`: the entry is on disk when this returns, as nobody else has the artifact.
    """
    listing = listing_of(statement)
    return store.put_artifact(
        listing.row, listing.envelope, listing.needed, listing.others, listing.chain, durable=durable
    )
