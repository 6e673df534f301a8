"""Signing what was made here, and listing what is known, in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from kvswap.artifact import dsse, layout
from kvswap.artifact.manifest import Life, Manifest
from kvswap.core.errors import KvswapError
from kvswap.core.ids import Cid
from kvswap.exchange.node import Node
from kvswap.store import ArtifactRow
from kvswap.trust import Statement, read_statement

T = TypeVar("T")


def told(
    node: Node, peer: str, what: str, envelopes: Iterable[bytes], most: int, read: Callable[[bytes], T]
) -> Iterator[T]:
    """Statements that came with a peer's answer, checked; a forged one ends them, and is a lie of that peer."""
    for data in islice(envelopes, most):
        try:
            signed = read(data)
        except KvswapError as error:
            node.lied(peer, f"{what}: {error.message}")
            return
        yield signed


def new_life(node: Node, supersedes: str | None = None) -> Life:
    """From now, for as long as this node's artifacts hold; `supersedes`: the artifact whose place it takes."""
    now = int(time.time())
    old = bytes(Cid.parse(supersedes)) if supersedes is not None else None
    return Life(issued=now, expires=now + node.settings.artifact_days * 86_400, sequence=now, supersedes=old)


def sign(node: Node, manifest: Manifest) -> Statement:
    """By this node's publisher key."""
    envelope = dsse.seal(manifest.encode(), manifest.publisher, node.publisher.sign)
    return read_statement(envelope)  # what we sign must pass the checks that everybody makes


def list_artifact(node: Node, statement: Statement) -> bool:
    """Index an artifact under its document and chain digests; True when what a reader needs is here."""
    manifest = statement.manifest
    now = time.time()
    row = ArtifactRow(
        id=str(statement.artifact),
        document=manifest.document.reference if manifest.document else None,
        model=manifest.model.digest,
        label=manifest.model.label,
        dtype=manifest.layout.dtype,
        tokens=manifest.prefix.tokens,
        raw_bytes=manifest.raw_bytes,
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
    return node.store.put_artifact(row, statement.envelope, needed, others, manifest.prefix.chain)
