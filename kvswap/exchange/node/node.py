"""A node: its store, model and settings, and its parts - network, peers, identity, trust, background."""

from __future__ import annotations

import asyncio
import time

from kvswap.core.errors import Incompatible, KvswapError, MalformedManifest, NotFound
from kvswap.core.ids import Cid
from kvswap.core.settings import Settings
from kvswap.core.version import __version__
from kvswap.cost import Calibration
from kvswap.exchange.model_port import ModelChoice, ModelPort
from kvswap.exchange.node.background import Background
from kvswap.exchange.node.buffers import Buffers
from kvswap.exchange.node.counters import Counters
from kvswap.exchange.node.events import EventLog
from kvswap.exchange.node.identity import Identity
from kvswap.exchange.node.listing import listing_of
from kvswap.exchange.node.network import Network
from kvswap.exchange.node.origins import Origins
from kvswap.exchange.node.peers import Peers
from kvswap.exchange.node.permission import Permission
from kvswap.exchange.node.prefix_index import OwnPrefixIndex
from kvswap.exchange.node.pushed import Pushed
from kvswap.exchange.node.savings import Savings
from kvswap.exchange.node.tables import tables_of
from kvswap.exchange.node.trust import Trust
from kvswap.net import Transport
from kvswap.net.hosts import Hosts
from kvswap.net.offline import Offline
from kvswap.store import ArtifactRow, Ledger, Listing, Store
from kvswap.trust import Identifiers, Key, PolicyFile, Statement, read_statement
from kvswap.trust.envelopes import is_signed, kind_of
from kvswap.worker.messages import Samples

AGENT = f"kvswap/{__version__}"


class Node:
    """The parts of one node.  The daemon makes it; the use cases take it as their first argument."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        transport: Transport | None,
        model: ModelPort,
        publisher: Key,
        policy: PolicyFile,
        calibration: Calibration,
        node_key: Key | None = None,
    ) -> None:
        """`transport`: None for a node that takes no part in the network."""
        home = settings.home
        self.settings = settings
        self.store = store
        self.model = model
        self.calibration = calibration
        self.hosts = Hosts(home / "keys" / "hosts")
        self.events = EventLog()
        self.counters = Counters()
        self.problems = store.problems  # what is degraded, by part
        self.ledger = Ledger(home / "peers.sqlite3", self.problems)
        self.savings = Savings(home / "savings.json", self.problems, time.time)
        self.buffers = Buffers()
        self.transport: Transport = transport if transport is not None else Offline()
        self.background = Background(self.problems, self.events)
        self.identity = Identity(home, publisher, node_key)
        self.trust = Trust(home, policy, self.problems)
        self.peers = Peers(self.ledger, self.transport, self.background, self.events, self.counters)
        self.permission = Permission(store, self.trust.standings, self.peers.unwelcome)
        self.own_prefix_index = OwnPrefixIndex(store, self.permission)
        self.origins = Origins(home, settings.origins, self.problems)
        self.pushed = Pushed(home)
        self.network = Network(
            self.transport, store, self.permission, self.peers, self.background, self.events, self.origins
        )
        self.tables = tables_of(  # for `status`
            self.network, self.peers, self.trust, self.permission, self.events, calibration
        )
        self.trust.reconcile_status_files(self.identity)
        store.read_with(self._listing)

    @property
    def p2p(self) -> bool:
        """True if the network part is running."""
        return self.transport.alive

    # -- the store, with this node's keys ----------------------------------------------------------

    def _listing(self, envelope: bytes) -> Listing | None:
        """Make the index entry of an envelope that is on disk and not in the index; None for what was withdrawn."""
        try:
            listing = listing_of(self.read(envelope))
        except MalformedManifest as error:
            if not is_signed(envelope, kind_of(envelope)):
                raise
            raise Incompatible(
                f"a manifest that is signed is not understood: {error.message}",
                cause="a newer kvswap, which was here before, wrote it",
                hint="kvswap --version",
                field=error.details.get("field"),
            ) from error
        withdrawn = self.trust.records.withdrawn(listing.row.id, listing.row.publisher)
        return listing if withdrawn is None else None

    def read(self, envelope: bytes) -> Statement:
        """Read a statement from this node's own store.  Raises `NotAMember` for one that is sealed for others."""
        return read_statement(envelope, self.trust.groups.keys)

    def identifiers(self, group: str | None) -> list[Identifiers]:
        """Return the names under which to look something up, in this order: those of groups, and the open one.

        Raises `NotFound` for a group that this node is not in.
        """
        return self.trust.groups.identifiers(group or self.settings.group or None)

    def lookup(self, reference: str | Cid, group: str | None = None) -> list[ArtifactRow]:
        """Return artifacts in the store, newest first: by CID the one, by document all, under every name it has."""
        if isinstance(reference, Cid):
            return self.store.lookup(reference)
        return [
            row for identifiers in self.identifiers(group) for row in self.store.lookup(identifiers.document(reference))
        ]

    def files_of(self, artifact: str) -> list[Cid]:
        """Return the files of an artifact in the store, in the manifest's order.  Raises `NotFound`.  Blocks."""
        envelope = self.store.envelope(artifact)
        if envelope is None:
            raise NotFound(f"artifact {artifact} is not here")
        return [file.id for file in self.read(envelope).manifest.files]

    # -- what was measured -------------------------------------------------------------------------

    def learn_prefill(self, choice: ModelChoice, samples: Samples) -> None:
        """Record the block times of a prefill just done: [tokens before, tokens, microseconds] of each block."""
        self.calibration.add_prefill(choice.calibration_key, _seconds(samples))

    def learn_hybrid(self, choice: ModelChoice, samples: Samples) -> None:
        """Record the block times of a prefill while chunks arrived: they say how much slower that is."""
        self.calibration.add_hybrid(choice.calibration_key, _seconds(samples))

    def _write_savings(self) -> None:
        """Write what was saved, if the disk takes it: a node ends in any case."""
        try:
            self.savings.write()
        except KvswapError as error:
            self.problems.note("savings", error)

    async def stop(self) -> None:
        """End all that runs, and write what is to be kept."""
        await self.background.stop()
        await self.network.stop()
        await asyncio.to_thread(self._write_savings)
        await asyncio.to_thread(self.calibration.close)
        await asyncio.to_thread(self.ledger.close)
        await asyncio.to_thread(self.trust.records.close)


def _seconds(samples: Samples) -> list[tuple[int, int, float]]:
    return [(before, tokens, micros / 1e6) for before, tokens, micros in samples]
