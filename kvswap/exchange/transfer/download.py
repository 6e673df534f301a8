"""Downloading chunks of an artifact into the store: what a whole fetch and a shared prefix both do."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from kvswap.core.errors import NotFound
from kvswap.core.ids import Cid
from kvswap.exchange.node.listing import list_artifact
from kvswap.exchange.node.node import Node
from kvswap.exchange.planning.decision import Judge
from kvswap.exchange.request import Progress
from kvswap.exchange.transfer.downloader import Transfer
from kvswap.exchange.verification.status_records import require_current
from kvswap.trust import Statement


async def download(
    node: Node,
    statement: Statement,
    wanted: Sequence[int],
    peers: Sequence[str],
    progress: Progress,
    rest: Judge | None = None,
    most_per_gb: float = math.inf,
    begin: Callable[[Transfer], None] | None = None,
) -> Transfer:
    """Fetch the files of these indices that are not here; the artifact is listed, complete or not.

    `begin` is called with the transfer before it starts, for callers that follow or change it.  Raises what
    `Transfer.run` does, and `NotFound` when the store could not keep them.
    """
    manifest = statement.manifest
    cids = await asyncio.to_thread(manifest.ids_of, wanted)
    # Whoever wants the same at the same time waits, and then finds it here.
    one_at_a_time = node.background.downloading.setdefault(str(statement.artifact), asyncio.Lock())
    async with node.store.held(lambda: cids):
        await asyncio.to_thread(_list, node, statement)
        transfer = Transfer(node, manifest, str(statement.artifact), wanted, progress, rest, most_per_gb)
        if begin is not None:
            begin(transfer)
        async with one_at_a_time:
            await transfer.run(peers)
        # It may have been withdrawn meanwhile, and is not to be listed again.
        await asyncio.to_thread(require_current, node, statement)
        kept = [cid for i, cid in zip(wanted, cids, strict=True) if i not in transfer.skipped]
        lost = await asyncio.to_thread(_listed, node, statement, kept)
    if lost:
        raise NotFound(
            f"artifact {statement.artifact} was fetched, but part of it was removed meanwhile",
            cause="the quota is too small for it",
            hint="kvswap gc, or KVSWAP_QUOTA_BYTES",
        )
    return transfer


def _list(node: Node, statement: Statement) -> bool:
    """List the artifact without waiting for the disk: what comes from peers can be had from them again."""
    return list_artifact(node.store, statement, durable=False)


def _listed(node: Node, statement: Statement, kept: Sequence[Cid]) -> list[Cid]:
    """List what is here now, and return those of `kept` that are not."""
    return [] if _list(node, statement) else node.store.missing(kept)
