"""Taking back what this node pushed: out of an origin's index, then its manifest; then the newest status record is put.

Chunks stay, as other artifacts may have them: without a manifest nobody finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvswap.core.errors import KvswapError, NotAMember
from kvswap.core.ids import document_key
from kvswap.core.origin_settings import OriginSettings
from kvswap.exchange.node.listing import listing_of
from kvswap.exchange.node.node import Node
from kvswap.exchange.publishing.at_origin import opened, put_status_record, writer_of
from kvswap.store import ArtifactRow


@dataclass(frozen=True, slots=True)
class PushedEntry:
    """An artifact that this node pushed: under which names it is listed, and at which origins."""

    artifact: str
    publisher: str
    document: bytes | None
    chain: Sequence[bytes]
    origins: Sequence[OriginSettings]


@dataclass(slots=True)
class TakenBack:
    """The origins from which something was taken, and those from which it could not be, and why."""

    origins: list[str] = field(default_factory=list)
    still_at: dict[str, str] = field(default_factory=dict)


def entries_of(node: Node, rows: Sequence[ArtifactRow]) -> list[PushedEntry]:
    """Return those of these artifacts that this node pushed.  Blocks; call it while their manifests are here."""
    found = []
    for row in rows:
        origins, envelope = node.pushed.of(row.id), node.store.envelope(row.id)
        if not origins or envelope is None:
            continue
        with contextlib.suppress(NotAMember):
            listing = listing_of(node.read(envelope))
            document = document_key(listing.row.document) if listing.row.document else None
            found.append(PushedEntry(row.id, row.publisher, document, listing.chain, origins))
    return found


async def take_back(node: Node, entries: Sequence[PushedEntry]) -> TakenBack:
    """Take artifacts from the origins where they are; what an origin refuses is told, and tried again with the next."""
    done = TakenBack()
    for entry in entries:
        for settings in entry.origins:
            try:
                async with opened(node, settings) as origin:
                    await origin.remove(entry.artifact, writer_of(node), entry.document, entry.chain)
                    await put_status_record(node, origin, entry.publisher)
            except KvswapError as error:
                done.still_at[settings.url] = error.message
                node.events.add("still_at_origin", artifact=entry.artifact, origin=settings.url, reason=error.message)
                continue
            await asyncio.to_thread(node.pushed.remove, entry.artifact, settings.url)
            if settings.url not in done.origins:
                done.origins.append(settings.url)
    return done
