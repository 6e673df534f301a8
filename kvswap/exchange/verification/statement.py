"""Signing what was made here, and listing what is known, in the store."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar

from kvswap.artifact import dsse, layout
from kvswap.artifact.manifest import Life, Manifest
from kvswap.artifact.sealing import KIND
from kvswap.core import wire
from kvswap.core.documents import check_written
from kvswap.core.errors import KvswapError, MalformedManifest
from kvswap.core.failures import is_local, record
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import Node
from kvswap.store import ArtifactRow, Listing
from kvswap.trust import Statement, verify_envelope
from kvswap.trust.envelopes import is_signed
from kvswap.trust.groups import Sealing

T = TypeVar("T")
RENEW_SECONDS = 86_400  # an own artifact with less life than this is made again


def told(
    node: Node, peer: str, kind: str, envelopes: Iterable[bytes], most: int, read: Callable[[bytes], T]
) -> Iterator[T]:
    """Statements of one kind that came with a peer's answer, checked.

    A forged one ends them, and is a lie of that peer.  One that is what its signer signed, and that we do not
    understand, is left out: it may be of a later version, and whoever passes it on vouches for the signature alone.
    """
    for data in islice(envelopes, most):
        try:
            signed = read(data)
        except KvswapError as error:
            if not (isinstance(error, MalformedManifest) and is_signed(data, kind)):
                node.lied(peer, f"{kind}: {error.message}")
                return
            node.events.add("not_understood", peer=peer, statement=kind, reason=error.message)
            continue
        yield signed


@contextlib.contextmanager
def heard(node: Node) -> Iterator[None]:
    """Go on where this machine cannot keep what a peer told; `status` shows it until `waiting.attend` could."""
    try:
        yield
    except Exception as error:
        if not is_local(error):
            raise
        node.problems.note("heard", record(error, "keeping what a peer told"))


async def read_current(node: Node, envelope: bytes) -> Statement:
    """Check a statement's envelope, signature, payload and life.  Raises as `verify_envelope` does.

    A large one is read in a thread, which gives way between its chunks: the loop waits for no manifest.
    """
    arguments = (envelope, int(time.time()), node.groups.keys)
    if len(envelope) <= LIMITS.inline_envelope_bytes:
        return verify_envelope(*arguments)
    return await asyncio.to_thread(verify_envelope, *arguments)


def new_life(node: Node, supersedes: Cid | None = None) -> Life:
    """From now, for as long as this node's artifacts hold; `supersedes`: the artifact whose place it takes."""
    now = int(time.time())
    old = bytes(supersedes) if supersedes is not None else None
    return Life(issued=now, expires=now + node.settings.artifact_days * 86_400, sequence=now, supersedes=old)


def sign(node: Node, manifest: Manifest, sealing: Sealing | None = None) -> Statement:
    """By this node's publisher key; `sealing`: for the members of a group, its files are sealed already.

    Blocks for as long as the manifest is large; call in a thread.
    """
    for part in (manifest.model, manifest.document, manifest.prefix, manifest.layout, manifest.numerics):
        for name, value in wire.plain(part).items() if part is not None else ():
            if isinstance(value, str):
                check_written(value, name)
    if sealing is None:
        envelope = dsse.seal(manifest.encode(), manifest.publisher, node.publisher.sign)
    else:
        envelope = dsse.seal(sealing.payload(manifest), manifest.publisher, node.publisher.sign, KIND)
    return node.read(envelope)  # what we sign must pass the checks that everybody makes


def reusable(node: Node, row: ArtifactRow) -> Statement | None:
    """Return an own statement that need not be made again; None where it is another's, or must be.

    It must be when it has less than a day to live, was issued later than now (a clock was ahead), or is not to be
    offered.
    """
    now = time.time()
    if row.publisher != str(node.publisher.peer_id) or row.expires <= now + RENEW_SECONDS:
        return None
    envelope = node.store.envelope(row.id) if node.permission.offered(row) else None
    statement = node.read(envelope) if envelope else None
    if statement is None or statement.manifest.life.issued > now + LIMITS.clock_skew_seconds:
        return None
    return statement


def listing_of(statement: Statement) -> Listing:
    """Return what the index is told of an artifact: its document, chain digests, and which files a reader needs."""
    manifest, names = statement.manifest, statement.names
    now = time.time()
    model, dtype = names.model(manifest.model.digest, manifest.layout.dtype)
    told = statement.seal is None  # the index holds what peers are told: of a sealed artifact nothing but its size
    row = ArtifactRow(
        id=str(statement.artifact),
        document=statement.reference,
        model=model,
        label=manifest.model.label if told else "",
        dtype=dtype,
        tokens=manifest.prefix.tokens if told else 0,
        raw_bytes=manifest.raw_bytes if told else 0,
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
    return Listing(row, statement.envelope, needed, others, names.chain(manifest.prefix.chain))


def list_artifact(node: Node, statement: Statement, *, durable: bool = True) -> bool:
    """Index an artifact under its document and chain digests; True when what a reader needs is here.

    `durable`: nobody else has it, so it is on disk, whatever happens, when this returns.
    """
    listing = listing_of(statement)
    return node.store.put_artifact(
        listing.row, listing.envelope, listing.needed, listing.others, listing.chain, durable=durable
    )
