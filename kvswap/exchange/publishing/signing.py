"""The signature of what was made here, and which of it need not be made again."""

from __future__ import annotations

import time

from kvswap.artifact import dsse
from kvswap.artifact.manifest import Life, Manifest
from kvswap.artifact.sealing import KIND
from kvswap.core import wire
from kvswap.core.documents import check_written
from kvswap.core.ids import Cid
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import Node
from kvswap.store import ArtifactRow
from kvswap.trust import Statement
from kvswap.trust.groups import Sealing

RENEW_SECONDS = 86_400  # an own artifact with less life than this is made again


def new_life(node: Node, supersedes: Cid | None = None) -> Life:
    """Make the lifetime of a new artifact: from now, for as long as this node's settings say.

    `supersedes`: the artifact whose place it takes.
    """
    now = int(time.time())
    old = bytes(supersedes) if supersedes is not None else None
    return Life(issued=now, expires=now + node.settings.artifact_days * 86_400, sequence=now, supersedes=old)


def sign(node: Node, manifest: Manifest, sealing: Sealing | None = None) -> Statement:
    """Sign a manifest with this node's publisher key.  Blocks for as long as the manifest is large; call in a thread.

    `sealing`: sign it for the members of a group; its files are sealed already.  Raises `UsageError` for a text
    that must not be written.
    """
    for part in (manifest.model, manifest.document, manifest.prefix, manifest.layout, manifest.numerics):
        for name, value in wire.plain(part).items() if part is not None else ():
            if isinstance(value, str):
                check_written(value, name)
    if sealing is None:
        envelope = dsse.seal(manifest.encode(), manifest.publisher, node.identity.publisher.sign)
    else:
        envelope = dsse.seal(sealing.payload(manifest), manifest.publisher, node.identity.publisher.sign, KIND)
    return node.read(envelope)  # what we sign must pass the checks that everybody makes


def reusable(node: Node, row: ArtifactRow) -> Statement | None:
    """Return an own statement that need not be made again; None where it is another's, or must be.

    It must be when it has less than a day to live, was issued later than now (a clock was ahead), or is not to be
    offered.
    """
    now = time.time()
    if row.publisher != node.identity.own or row.expires <= now + RENEW_SECONDS:
        return None
    envelope = node.store.envelope(row.id) if node.permission.offered(row) else None
    statement = node.read(envelope) if envelope else None
    if statement is None or statement.manifest.life.issued > now + LIMITS.clock_skew_seconds:
        return None
    return statement
