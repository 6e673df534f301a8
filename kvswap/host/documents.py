"""The documents of a host: fetched, pinned, and read now and then, so that a client finds them in the cache."""

from __future__ import annotations

import asyncio
import logging
import time

from kvswap.client import AsyncClient, Client
from kvswap.core.errors import NotFound
from kvswap.core.ids import document_digest
from kvswap.core.upkeep import Problems, describe, forever
from kvswap.host.app import HostApi, Warmth
from kvswap.host.engine import EngineClient
from kvswap.host.prompts import Prompts
from kvswap.host.usage_log import HostedDocument, UsageLog

logger = logging.getLogger("kvswap.host")


def add(client: Client, usage_log: UsageLog, text: str, name: str) -> tuple[HostedDocument, bool]:
    """Fetch a document's cache, or publish it if nobody has; pin it, and host the document.

    Returns the document, and whether it was published here.
    """
    reference, published = document_digest(text.encode()), False
    try:
        artifact = client.fetch(reference, text=text, force=True).id
    except NotFound:
        artifact, published = client.publish(text).artifact, True
    client.pin(artifact)
    document = HostedDocument(reference, name, text, artifact)
    usage_log.add_document(document)
    return document, published


def remove(client: Client, usage_log: UsageLog, reference: str) -> None:
    """Stop hosting a document, and unpin its cache.  Raises `NotFound` if it is not hosted."""
    document = usage_log.document(reference)
    usage_log.remove_document(reference)
    try:
        client.pin(document.artifact, False)
    except NotFound:
        logger.info("%s was not in the store any more", document.artifact)


async def keep_warm(
    api: HostApi, client: AsyncClient, usage_log: UsageLog, prompts: Prompts, engine: EngineClient, seconds: float
) -> None:
    """Fetch and read each document, at once when it is new and again after so many seconds, until cancelled."""

    async def step() -> None:
        for reference in await asyncio.to_thread(usage_log.references):
            known = api.warmth.get(reference)
            if known is not None and time.time() - known.at < seconds:
                continue
            name = "a hosted document"  # its artifact, once that is known: a log has no digest of a document
            try:
                document = await asyncio.to_thread(usage_log.document, reference)
                name = document.artifact
                await _look_after(client, document)
                api.warmth[reference] = await _read(prompts, engine, document)
            except Exception as error:  # noqa: BLE001 - one document; the others are looked after all the same
                logger.warning("%s is not warm: %s", name, describe(error))
                api.warmth[reference] = Warmth(0.0, 0)

    await forever("documents", step, Problems(), pause=min(1.0, seconds))


async def _look_after(client: AsyncClient, document: HostedDocument) -> None:
    """Make sure that a document's artifact is in the store, whole and pinned, fetching what is missing."""
    await client.fetch(document.artifact, text=document.text, force=True)
    await client.pin(document.artifact)


async def _read(prompts: Prompts, engine: EngineClient, document: HostedDocument) -> Warmth:
    """Read a document as a client that asks about it for the first time would, and measure it."""
    ids = await asyncio.to_thread(prompts.document, document.document)
    began, first, cached = time.monotonic(), 0.0, 0
    salt = f"kvswap-warm-{time.monotonic_ns()}"  # a new one: not from the engine's prefix cache, but the node's store
    async for piece in engine.complete([*ids, ids[-1]], {"max_tokens": 1}, salt):
        first = first or time.monotonic() - began
        cached = piece.usage[1] if piece.usage is not None else cached
    if cached < len(ids) // 2:
        logger.warning(
            "%s: %d of %d tokens came from the cache; is its artifact of this model?",
            document.artifact,
            cached,
            len(ids),
        )
    return Warmth(first, cached)
