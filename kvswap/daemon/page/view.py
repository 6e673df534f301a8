"""What the parts of the page show, gathered from the node as the local API tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvswap.api.peers import PeerRow
from kvswap.api.store import StoredArtifact
from kvswap.daemon.artifacts_api import ArtifactsApi
from kvswap.daemon.peers_api import PeersApi
from kvswap.daemon.running import RequestState, Running
from kvswap.exchange import Node
from kvswap.store.tables import ROWS_AT_ONCE

PAGE_ROWS = 50
_LOG_ROWS = 60
_PEER_ROWS = 200


@dataclass(frozen=True, slots=True)
class ArtifactsPage:
    """A page of the artifacts in the store, newest first."""

    rows: Sequence[StoredArtifact]
    query: str
    number: int  # from 0
    more: bool  # there is a next one


@dataclass(frozen=True, slots=True)
class PeersPage:
    """The peers that matter most: connected ones, then those that answered last."""

    rows: Sequence[PeerRow]
    known: int


@dataclass(frozen=True, slots=True)
class EventLine:
    """An event, in a line."""

    at: float
    kind: str
    text: str


class View:
    """The contents of the page's parts."""

    def __init__(self, node: Node, running: Running, artifacts: ArtifactsApi, peers: PeersApi) -> None:
        self.node = node
        self.running = running
        self._artifacts = artifacts
        self._peers = peers

    async def artifacts(self, query: str = "", number: int = 0) -> ArtifactsPage:
        """Find a page of the artifacts, all or those in whose document, model, publisher or id `query` stands."""
        return await asyncio.to_thread(self._page, query, number)

    def _page(self, query: str, number: int) -> ArtifactsPage:
        wanted, skipped, rows = query.lower(), number * PAGE_ROWS, list[StoredArtifact]()
        for page in self._pages(at_once=ROWS_AT_ONCE if wanted or number else PAGE_ROWS + 1):
            found = [row for row in page if wanted in _searched(row)] if wanted else page
            rows += found[skipped:]
            skipped = max(0, skipped - len(found))
            if len(rows) > PAGE_ROWS:
                break
        return ArtifactsPage(rows[:PAGE_ROWS], query, number, len(rows) > PAGE_ROWS)

    def _pages(self, at_once: int) -> Iterator[list[StoredArtifact]]:
        store = self.node.store
        page = store.page(None, at_once)
        while page:
            yield self._artifacts.shown(page)
            page = store.page(page[-1], at_once) if len(page) == at_once else []

    def peers(self) -> PeersPage:
        """List the peers."""
        rows = self._peers.rows()
        rows.sort(key=lambda row: (not row.connected, -(row.seen or 0.0)))
        return PeersPage(rows[:_PEER_ROWS], len(rows))

    def work(self) -> list[RequestState]:
        """List what is under way, and what ended last."""
        return self.running.listed()

    def log(self) -> list[EventLine]:
        """List the last events, the newest first."""
        return [
            EventLine(event.time, event.kind, "  ".join(f"{name}: {value}" for name, value in event.more.items()))
            for event in reversed(self.node.events.recent(_LOG_ROWS))
        ]


def _searched(row: StoredArtifact) -> str:
    return " ".join((row.artifact, row.document or "", row.label, row.publisher, row.standing)).lower()
