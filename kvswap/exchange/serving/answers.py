"""The answers to peers from the store: of what may be offered (`permission`), checked as it is read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import Any

from kvswap.core.errors import KvswapError, NotFound, PeerBusy, UsageError
from kvswap.core.ids import Cid, parse_document
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.node import AGENT
from kvswap.exchange.serving.parts import Serving
from kvswap.exchange.verification.audits import audits_of
from kvswap.exchange.verification.status_records import status_records_of
from kvswap.net import messages
from kvswap.net.client import bitmap
from kvswap.net.dialling import allowed
from kvswap.net.server import Held, RemoteCaller
from kvswap.store import ArtifactRow


async def answer(serving: Serving, caller: RemoteCaller, request: messages.Request) -> Any:
    """Return the body of the answer to a peer's request.

    Raises `NotFound`, `PeerBusy` or `UsageError`, which are sent to the peer.
    """
    if isinstance(request, messages.Find):
        return await _find(serving, caller, request)
    if isinstance(request, messages.GetManifest):
        return await _manifest(serving, caller.peer, request.artifact)
    if isinstance(request, messages.Join):
        return await _join(serving, caller, request)
    if isinstance(request, messages.Have):
        have = await asyncio.to_thread(_have, serving, request.artifact)
        return messages.HaveReply(have, _others(serving, caller.peer, request.artifact))
    if isinstance(request, messages.GetPrefixIndex):
        return await _prefix_index(serving, caller.peer, request.version)
    return await _chunk(serving, caller.peer, request.cid)


async def _chunk(serving: Serving, peer: str, text: str) -> Held:
    cid = Cid.parse(text)
    data, size = await serving.uploads.take(peer, cid)
    return Held(data, partial(serving.uploads.give_back, peer, size), partial(serving.uploads.permit, peer, cid))


def _require_offered(serving: Serving, artifact: str) -> str:
    """Return the id of an artifact that peers may have.  Raises `NotFound`."""
    row = serving.node.store.get_artifact(str(Cid.parse(artifact)))
    if row is None or not serving.node.permission.offered(row):
        raise NotFound(f"artifact {artifact} is not here")
    return row.id


async def _manifest(serving: Serving, peer: str, artifact: str) -> Held:
    """Return an envelope under the limits of chunks: a manifest may be as large as one."""
    size = await asyncio.to_thread(lambda: serving.node.store.envelope_length(_require_offered(serving, artifact)))
    data = await serving.uploads.share(peer, size, partial(_envelope, serving, artifact))
    return Held(data, partial(serving.uploads.give_back, peer, size))


async def _prefix_index(serving: Serving, peer: str, version: int) -> Held | messages.PrefixIndexReply:
    reply = await asyncio.to_thread(serving.node.own_prefix_index.reply, version)
    if reply.keys is None:
        return reply
    keys = reply.keys
    await serving.uploads.share(peer, len(keys), lambda: keys)
    return Held(reply, partial(serving.uploads.give_back, peer, len(keys)))


def _envelope(serving: Serving, artifact: str) -> bytes:
    envelope = serving.node.store.envelope(_require_offered(serving, artifact))
    if envelope is None:
        raise NotFound(f"artifact {artifact} is not here")
    return envelope


async def _join(serving: Serving, caller: RemoteCaller, request: messages.Join) -> messages.JoinReply:
    if request.me.peer != caller.peer:
        raise UsageError("nobody joins for somebody else")
    have = await asyncio.to_thread(_have, serving, request.artifact)
    others = _others(serving, caller.peer, request.artifact)
    seen = serving.node.transport.host_of(caller.peer)
    serving.node.network.swarms.join(
        request.artifact, messages.Provider(caller.peer, list(allowed(request.me.addresses, seen)))
    )
    caller.ending.callback(serving.node.network.swarms.leave, request.artifact, caller.peer)
    return messages.JoinReply(
        have, others, _issue_ticket(serving, caller, [request.artifact]) if request.bulk else None
    )


def _issue_ticket(serving: Serving, caller: RemoteCaller, artifacts: list[str]) -> messages.BulkTicket | None:
    """Return a bulk ticket of this stream, which opens these artifacts too; None where none can be issued.

    It is the one that the stream has for half of its life, then another.
    """
    record, now = serving.bulk_record, time.monotonic()
    if record is None:
        return None
    if caller.token is None or now > caller.token_until or not serving.tokens.holds(caller.token):
        try:
            caller.token = serving.tokens.issue(caller.peer, artifacts=artifacts)
        except PeerBusy:
            return None  # this stream still serves
        caller.token_until = now + LIMITS.token_seconds / 2
        caller.ending.callback(serving.tokens.revoke, caller.token)
    else:
        serving.tokens.extend(caller.token, artifacts)
    left = caller.token_until + LIMITS.token_seconds / 2 - now
    return messages.BulkTicket(caller.token, int(left), record)


def _others(serving: Serving, peer: str, artifact: str) -> list[messages.Provider]:
    known = {p.peer: p for p in serving.node.network.swarms.readers(artifact, but=peer)}
    for address in serving.node.network.referrals(artifact):
        if address.peer != peer:
            known.setdefault(address.peer, messages.Provider(address.peer, list(address.addresses[:8])))
    return list(known.values())[: LIMITS.find_results]


def _have(serving: Serving, artifact: str) -> bytes:
    cids = serving.chunk_list(_require_offered(serving, artifact))
    missing = set(serving.node.store.missing(cids))
    return bitmap([c not in missing for c in cids])


async def _find(serving: Serving, caller: RemoteCaller, request: messages.Find) -> messages.FindReply:
    given = [v for v in (request.document, request.artifact, request.chain) if v is not None]
    if len(given) != 1:
        raise UsageError("a find names exactly one of document, artifact, chain")
    providers: list[messages.Provider] = []
    reference: str | Cid | None = None
    if request.chain is None:
        by_document = request.document is not None
        reference = parse_document(str(request.document)) if by_document else Cid.parse(str(request.artifact))
        providers = [
            messages.Provider(p.peer, list(p.addresses[:8])) for p in serving.node.network.referrals(str(reference))
        ]
    own = serving.node.identity.own
    pairs, fitting, envelope = await asyncio.to_thread(_looked_up, serving, request, reference)
    status_records, audits = await asyncio.to_thread(
        _statements, serving, request, [own, *(row.publisher for row, _ in pairs)]
    )
    if len(pairs) == 1 and request.chain is None:
        serving.node.background.spawn(_prepare(serving, pairs[0][0].id))
    found = [_found(row, blocks, envelope if row.id == fitting else None) for row, blocks in pairs]
    ask_price = int(serving.node.settings.asks_per_gb * 1e6)
    whole = [row.id for row, _ in pairs if row.complete]
    ticket = _issue_ticket(serving, caller, whole) if request.bulk and whole else None
    return messages.FindReply(
        AGENT, own, found, providers[: LIMITS.find_results], ask_price, status_records, audits, ticket
    )


def _looked_up(
    serving: Serving, request: messages.Find, reference: str | Cid | None
) -> tuple[list[tuple[ArtifactRow, int]], str | None, bytes | None]:
    """Return what is here, with the blocks shared; which of it fits the reader; and its envelope, if small enough."""
    if reference is None:
        pairs = serving.node.store.longest_prefix(request.chain or [])
    else:
        pairs = [(row, 0) for row in serving.node.store.lookup(reference)]
    pairs = [(row, blocks) for row, blocks in pairs if serving.node.permission.offered(row)][: LIMITS.find_results]
    wanted = (request.model, request.dtype)
    fitting = next((row.id for row, _ in pairs if request.model is None or (row.model, row.dtype) == wanted), None)
    envelope = serving.node.store.envelope(fitting) if fitting else None
    if envelope is not None and len(envelope) > LIMITS.inline_envelope_bytes:
        envelope = None
    return pairs, fitting, envelope


def _statements(serving: Serving, request: messages.Find, publishers: list[str]) -> tuple[list[bytes], list[bytes]]:
    """Return the status records and audits to send to a reader."""
    audits = audits_of(serving.node, request.artifact, request.document) if request.chain is None else []
    return status_records_of(serving.node, publishers), audits


async def _prepare(serving: Serving, artifact: str) -> None:
    """Have the chunks of an artifact ready: who asked for one artifact is going to join it."""
    with contextlib.suppress(KvswapError):
        await asyncio.to_thread(serving.chunk_list, artifact)


def _found(row: ArtifactRow, shared: int, envelope: bytes | None) -> messages.Found:
    return messages.Found(
        artifact=row.id,
        model=row.model,
        dtype=row.dtype,
        tokens=row.tokens,
        wire_bytes=row.wire_bytes,
        publisher=row.publisher,
        complete=row.complete,
        shared_blocks=shared,
        envelope=envelope,
    )
