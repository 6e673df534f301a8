"""Verifying an artifact that is in the store: signature, life, trust, every chunk, every tensor, the probe."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from kvswap.artifact import layout
from kvswap.core.errors import Incompatible, IntegrityError, KvswapError, NotFound
from kvswap.core.ids import Cid
from kvswap.exchange.node import Node
from kvswap.trust import require_trust, verify_envelope


async def verify_artifact(node: Node, reference: str | Cid) -> dict[str, Any]:
    """A report by step.  Raises for what must not be used: a bad signature, digest, or chunk.

    With the model here, the cache is decoded, its tensor digests are checked and the probe is run;
    the probe shows incompatibility, it is no proof that the cache belongs to the text.
    """
    row = next(iter(node.store.lookup(reference)), None)
    envelope = node.store.envelope(row.id) if row is not None else None
    if row is None or envelope is None:
        raise NotFound(f"{reference} is not in the store", hint=f"kvswap fetch {reference}")
    statement = verify_envelope(envelope, int(time.time()))
    report: dict[str, Any] = {"artifact": row.id, "signature": True, "publisher": statement.manifest.publisher}
    try:
        require_trust(statement, node.policy.policy)
        report["trusted"] = True
    except KvswapError:
        report["trusted"] = False
    files = statement.manifest.files
    needed = {files[i].id for i in layout.needed_files(statement.manifest)}
    absent = await asyncio.to_thread(node.store.missing, needed)
    if absent:
        raise NotFound(f"{len(absent)} of {len(needed)} chunks of {row.id} are not here", hint=f"kvswap fetch {row.id}")
    cids = list(needed)

    def check() -> int:
        for cid in cids:
            node.store.check_chunk(cid)
        return len(cids)

    report["chunks"] = await asyncio.to_thread(check)
    try:
        choice = await node.model.choose()
        made = await node.model.run(choice, "verify", envelope=envelope, chunks=str(node.store.chunks_directory))
    except (NotFound, Incompatible) as error:
        report |= {"tensors": None, "probe": None, "skipped": error.message}
        return {**report, "verified": True}
    report |= {
        "tensors": len(statement.manifest.tensors),
        "probe": made["probe_tokens_equal"],
        "probe_bitwise": made["probe_logits_equal"],
        "same_environment": made["same_environment"],
    }
    # On another class of machine honest numerics may tip a close token: told, not judged.
    if made["same_environment"] and not made["probe_tokens_equal"]:
        raise IntegrityError(
            f"artifact {row.id} does not continue as its probe says", cause="another model, or damaged tensors"
        )
    return {**report, "verified": True}
