"""Answering peers from the store.  What is expired is not offered; what is offered is checked as it is read."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from kvswap.core.errors import NotFound, UsageError
from kvswap.core.ids import Cid, parse_document
from kvswap.core.limits import LIMITS
from kvswap.exchange.node import AGENT, Node
from kvswap.net import messages
from kvswap.net.client import bitmap
from kvswap.store import ArtifactRow
from kvswap.trust import read_statement


async def answer(node: Node, peer: str, request: messages.Request) -> Any:
    """The body of the answer.  Raises `NotFound` or `UsageError`, which the peer is told."""
    if isinstance(request, messages.Hello):
        return messages.HelloReply(AGENT, str(node.publisher.peer_id))
    if isinstance(request, messages.Find):
        return await _find(node, request)
    if isinstance(request, messages.GetManifest):
        return await asyncio.to_thread(_envelope, node, request.artifact)
    if isinstance(request, messages.Have):
        return await asyncio.to_thread(_have, node, request.artifact)
    return await _chunk(node, peer, request.cid)


async def _chunk(node: Node, peer: str, text: str) -> bytes:
    cid = Cid.parse(text)
    with node.store.lease([cid]):
        data = await asyncio.to_thread(node.store.get_chunk, cid)
    record = node.record(peer)
    record.bytes_out += len(data)
    node.counters.bytes_out += len(data)
    return data


def _envelope(node: Node, artifact: str) -> bytes:
    envelope = node.store.envelope(str(Cid.parse(artifact)))
    if envelope is None:
        raise NotFound(f"artifact {artifact} is not here")
    return envelope


def _have(node: Node, artifact: str) -> bytes:
    cids = [c.id for c in read_statement(_envelope(node, artifact)).manifest.chunks]
    missing = set(node.store.missing(cids))
    return bitmap([c not in missing for c in cids])


async def _find(node: Node, request: messages.Find) -> messages.FindReply:
    given = [v for v in (request.document, request.artifact, request.chain) if v is not None]
    if len(given) != 1:
        raise UsageError("a find names exactly one of document, artifact, chain")
    if request.chain is not None:
        pairs = await asyncio.to_thread(node.store.longest_prefix, request.chain)
        return messages.FindReply([_found(r, blocks) for r, blocks in _fresh(pairs)], [])
    by_document = request.document is not None
    reference = parse_document(str(request.document)) if by_document else Cid.parse(str(request.artifact))
    rows = await asyncio.to_thread(node.store.lookup, reference)
    providers = [messages.Provider(p.peer, list(p.addresses)) for p in node.referrals(str(reference))]
    found = [_found(row, 0) for row, _ in _fresh([(r, 0) for r in rows])]
    return messages.FindReply(found, providers[: LIMITS.find_results])


def _fresh(pairs: list[tuple[ArtifactRow, int]]) -> list[tuple[ArtifactRow, int]]:
    now = time.time()
    return [(row, blocks) for row, blocks in pairs if row.expires > now][: LIMITS.find_results]


def _found(row: ArtifactRow, shared: int) -> messages.Found:
    return messages.Found(row.id, row.model, row.dtype, row.tokens, row.wire_bytes, row.publisher, shared)
