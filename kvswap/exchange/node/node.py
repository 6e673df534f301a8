"""A node: its keys, store, peers, policy and measurements, and the upkeep between requests."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from kvswap.core.errors import (
    Incompatible,
    KvswapError,
    MalformedManifest,
    MalformedMessage,
    NotFound,
    P2pDown,
    UsageError,
)
from kvswap.core.failures import is_own
from kvswap.core.ids import Cid, PeerId
from kvswap.core.limits import LIMITS
from kvswap.core.settings import Settings
from kvswap.core.tasks import OnLoop
from kvswap.core.upkeep import describe
from kvswap.core.version import __version__
from kvswap.cost import Calibration
from kvswap.exchange.discovery.spoken import Spoken
from kvswap.exchange.model_port import ModelChoice, ModelPort
from kvswap.exchange.node.buffers import Buffers
from kvswap.exchange.node.catalogue import Catalogues, OwnCatalogue
from kvswap.exchange.node.counters import Counters
from kvswap.exchange.node.events import EventLog
from kvswap.exchange.node.grants import Grants
from kvswap.exchange.node.hearsay import Hearsay
from kvswap.exchange.node.neighbours import Neighbours
from kvswap.exchange.node.permission import Permission
from kvswap.exchange.node.providing import Providing
from kvswap.exchange.node.standing import Standings
from kvswap.exchange.node.swarms import Swarms
from kvswap.exchange.node.tables import tables_of
from kvswap.exchange.serving.lists import ChunkLists
from kvswap.exchange.serving.uploads import Uploads
from kvswap.net import Announcement, PeerAddress, Transport, Unreachable, messages
from kvswap.net.bulk import BulkClient, BulkIdentity, BulkServer, Tokens
from kvswap.net.client import Sessions
from kvswap.net.dialling import allowed
from kvswap.net.hosts import Hosts
from kvswap.net.server import Server
from kvswap.store import ArtifactRow, HeadFiles, Ledger, Listing, PeerRecord, Records, Store
from kvswap.trust import Groups, Key, Names, PolicyFile, Statement, load_or_create, read_statement
from kvswap.trust.envelopes import is_signed, kind_of
from kvswap.trust.head import Head, SignedHead, read_head

T = TypeVar("T")
AGENT = f"kvswap/{__version__}"


class Node:
    """The parts of one node.  Made by the daemon; the use cases take it as their first argument."""

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
        self.settings = settings
        self.store = store
        self.transport = transport
        self.model = model
        self.publisher = publisher
        self.publisher_file = settings.home / "keys" / "publisher.key"
        retired = sorted((settings.home / "keys" / "retired").glob("*.key"))
        self.retired = {str(key.peer_id): key for key in map(load_or_create, retired)}  # publisher keys of before
        self.groups = Groups(settings.home / "keys" / "groups")
        self.hosts = Hosts(settings.home / "keys" / "hosts")
        self.policy = policy
        self.calibration = calibration
        self.node_key = node_key  # signs the record of the bulk plane; None: no bulk plane
        self.events = EventLog()
        self.counters = Counters()
        self.problems = store.problems  # what is degraded, by part
        self.ledger = Ledger(settings.home / "peers.sqlite3", self.problems)
        self.records = Records(
            settings.home / "trust.sqlite3", lambda publisher: self.policy.policy.trusts(publisher), self.problems
        )
        self.standings = Standings(self.records, policy)
        self.head_files = HeadFiles(settings.home / "heads")
        # fetching
        self.buffers = Buffers()
        self.sessions = Sessions(transport) if transport is not None else None
        self.bulk = BulkClient()
        self.grants = Grants()
        self.leaving: set[Callable[[str], object]] = set()  # called with a peer that nothing is taken from any more
        self.catalogues = Catalogues(self.delivered)
        self.pulling: dict[str, asyncio.Task[None]] = {}  # catalogues of peers, on their way
        self.bringing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # artifacts being fetched
        # serving
        self.tokens = Tokens()
        self.swarms = Swarms()
        self.permission = Permission(store, self.standings, self._unwelcome)
        self.uploads = Uploads(store, self.permission, self.ledger, self.counters, settings.upload_bytes_per_second)
        self.catalogue = OwnCatalogue(store, self.permission)
        self.chunk_list = ChunkLists(self._chunk_list)
        self.head: tuple[tuple[object, ...], SignedHead | None] = ((), None)  # our own, and for what it was signed
        self.to_follow: dict[str, Head] = {}  # of trusted publishers, whose successors the trust list has still to take
        self.heads_lock = threading.RLock()  # a sequence is signed once, and no older head takes the place of a newer
        self._bulk_server: BulkServer | None = None
        self.hearsay = Hearsay(self.delivered)
        self.neighbours = Neighbours(self.delivered)
        self.providing = Providing(self)
        self.spoken = Spoken(self)
        self.tables = tables_of(self)  # for `status`
        if transport is not None:
            transport.favour(self.delivered)
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_loop = OnLoop()
        self.measuring = False  # prefill of the model, in the background
        # publishing
        self.recoding = asyncio.Lock()  # one document at a time in the background, and each once
        self._match_heads()
        store.read_with(self._listing)

    @staticmethod
    def keys(home: Path) -> tuple[Key, Key]:
        """(node key, publisher key), made on first use."""
        directory = home / "keys"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return load_or_create(directory / "node.key"), load_or_create(directory / "publisher.key")

    def _chunk_list(self, artifact: str) -> list[Cid]:
        """The files of an artifact in the store, in the manifest's order.  Raises `NotFound`."""
        envelope = self.store.envelope(artifact)
        if envelope is None:
            raise NotFound(f"artifact {artifact} is not here")
        return [file.id for file in self.read(envelope).manifest.files]

    def _match_heads(self) -> None:
        """Head records of our own and of whom we trust are in the database and in files: the newer one is right."""
        restored = 0
        for publisher, envelope in self.head_files.all():
            with contextlib.suppress(KvswapError):
                head = read_head(envelope).head
                known = self.records.head(publisher)
                if head.publisher == publisher and (known is None or known[0] < head.sequence):
                    self.records.hear_head(publisher, head.sequence, envelope, head.reasons, kept=True)
                    restored += 1
        for publisher in (str(self.publisher.peer_id), *self.retired, *self.policy.policy.publishers):
            known = self.records.head(publisher) if not self.head_files.has(publisher) else None
            if known is not None:
                self.head_files.put(publisher, known[1])
        if restored and self.records.empty:
            text = f"trust.sqlite3 was damaged or gone: {restored} head records are restored, checks and audits are not"
            self.problems.note("trust", text)

    def _listing(self, envelope: bytes) -> Listing | None:
        """What to list of an envelope that the disk has and the index has not; None for what was withdrawn."""
        from kvswap.exchange.verification.statement import listing_of

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
        withdrawn = self.records.withdrawn(listing.row.id, listing.row.publisher)
        return listing if withdrawn is None else None

    def read(self, envelope: bytes) -> Statement:
        """A statement from our own store.  Raises `NotAMember` for one that is sealed for others."""
        return read_statement(envelope, self.groups.keys)

    def names(self, group: str | None) -> list[Names]:
        """Under which names to look something up, in this order.  Raises `NotFound` for a group we are not in."""
        return self.groups.names(group or self.settings.group or None)

    def lookup(self, reference: str | Cid, group: str | None = None) -> list[ArtifactRow]:
        """Artifacts in the store, newest first: this one, or those of a document under every name it has."""
        if isinstance(reference, Cid):
            return self.store.lookup(reference)
        return [row for names in self.names(group) for row in self.store.lookup(names.document(reference))]

    def record(self, peer: str) -> PeerRecord:
        """What is known of a peer; changes to it are kept."""
        return self.ledger.record(peer)

    def failed(self, peer: str, reason: str) -> None:
        """A peer did not do what it should: noted, and left alone for a while."""
        with self.ledger.changing(peer) as record:
            record.failed(time.time())
        self.events.add("peer_failed", peer=peer, reason=reason)

    def blame(self, peer: str, error: BaseException) -> bool:
        """Hold an error of asking a peer against it, unless it is this side's own trouble; say whether it was.

        That it did not answer in time is the peer's.
        """
        if is_own(error) and not isinstance(error, TimeoutError):
            return False
        self.failed(peer, describe(error).removesuffix(":") if str(error) else "no answer in time")
        return True

    def lied(self, peer: str, reason: str, **about: str) -> None:
        """A peer sent something else than it was asked for: not asked again for an hour."""
        with self.ledger.changing(peer) as record:
            record.lied(time.time())
        self.counters.rejected_chunks += 1
        self.events.add("peer_lied", peer=peer, reason=reason, **about)

    def flooded(self, peer: str, how: str) -> None:
        """A peer asks for more than it takes: hang up, and serve it again in a minute."""
        if self.neighbours.is_shunned(peer):
            return  # what was under way when it was cut off
        self.neighbours.shun(peer)
        with self.ledger.changing(peer) as record:
            record.failed(time.time())
        self.events.add("peer_flooded", peer=peer, reason=f"it {how}; not served for {LIMITS.shun_seconds:g} s")
        self._cut_off(peer)

    def _cut_off(self, peer: str) -> None:
        """End what is under way to a peer, on both planes."""
        self.tokens.revoke_all(peer)
        if self._bulk_server is not None:
            self._bulk_server.hang_up(peer)
        if self.transport is not None and self.p2p:
            self.spawn(self.transport.disconnect(peer))

    def _unwelcome(self, peer: str) -> bool:
        return self.ledger.blocked(peer) or self.neighbours.is_shunned(peer)

    def resting(self, peer: str) -> float:
        """Seconds for which a peer is better not asked, after what it did; after a mere failure until it comes anew."""
        if self.ledger.blocked(peer):
            return float("inf")
        since = self.transport.connected_since(peer) if self.transport is not None else None
        return self.ledger.resting(peer, LIMITS.backoff_seconds, LIMITS.lie_seconds, since)

    def paused(self, peer: str) -> bool:
        """Say whether a peer that delivered rests for failures alone: not for a lie, nor blocked or shunned."""
        rests = self.resting(peer) > 0
        return rests and self.delivered(peer) and not self.ledger.lies(peer) and not self._unwelcome(peer)

    def delivered(self, peer: str) -> bool:
        """Whether this peer ever gave what it was asked for: what is new pushes nothing of it out."""
        return self.ledger.delivered(peer)

    async def reach(self, address: PeerAddress, seconds: float = LIMITS.dial_seconds, teller: str = "") -> None:
        """Connect unless connected.  Raises `Unreachable`, which is held against the addresses and who told them."""
        if self.transport is None:
            raise P2pDown("this node takes no part in the network", hint="kvswap status")
        if address.peer in self.transport.connected():
            self.hearsay.met(address.peer)
            return
        try:
            async with asyncio.timeout(seconds):
                await self.transport.connect(address)
        except (Unreachable, TimeoutError) as error:
            if self.hearsay.unreached(address, teller):  # and not with each try of a peer that is gone
                self.events.add("unreached", peer=address.peer, reason=str(error)[:200] or "no connection in time")
            raise Unreachable(f"{address.peer} was not reached: {error or 'no connection in time'}") from error
        self.hearsay.reached(address, teller)

    def offered(self, peer: str, per_gb: float) -> None:
        """A peer said what it wants for a gigabyte."""
        self.neighbours.asks(peer, per_gb)

    def asks(self, peer: str) -> float:
        """US dollars for a gigabyte from a peer, as far as known."""
        return self.neighbours.price(peer)

    def block(self, peer: str, blocked: bool) -> None:
        """Neither serve nor ask a peer, from now on; or do so again, its past forgiven.  On the event loop.

        What is under way to it ends at once, and what is under way from it.  Raises `UsageError` for more than can be
        remembered.
        """
        peer = str(PeerId.parse(peer))
        self.ledger.block(peer, blocked)
        if blocked:
            for leave in list(self.leaving):
                leave(peer)
            self._cut_off(peer)
            self.bulk.forget(peer)
        self.events.add("blocked" if blocked else "unblocked", peer=peer)

    @property
    def bulk_record(self) -> messages.BulkRecord | None:
        """Where this node serves HTTPS, signed; None when it does not."""
        return self._bulk_server.record if self._bulk_server is not None else None

    def learn_prefill(self, choice: ModelChoice, samples: list[list[int]]) -> None:
        """Keep the block times of a prefill just done: [tokens before, tokens, microseconds] from the model process."""
        self.calibration.add_prefill(choice.calibration_key, _seconds(samples))

    def learn_hybrid(self, choice: ModelChoice, samples: list[list[int]]) -> None:
        """The same of a prefill while chunks arrived, which says what that costs."""
        self.calibration.add_hybrid(choice.calibration_key, _seconds(samples))

    async def ask(self, address: PeerAddress, request: messages.Request, kind: type[T], limit: int | None = None) -> T:
        """One request to a peer and its answer, of `limit` bytes at most.  Raises `NotFound` or `PeerError`."""
        if self.sessions is None:
            raise P2pDown("this node takes no part in the network", hint="kvswap status")
        return await self.sessions.ask(address, request, kind, limit)

    @property
    def p2p(self) -> bool:
        return self.transport is not None and self.transport.alive

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the network.  A failure there degrades the node, is reported and tried again; the rest works."""
        from kvswap.exchange.serving import upkeep

        for row in self.policy.lifted():
            self.events.add("distrust_lifted", publisher=row["peer"], artifact=row["artifact"], reason=row["why"])
        if self.transport is None:
            return
        try:
            await self.join()
            await self.serve_bulk()
        except KvswapError:
            pass  # it is noted
        upkeep.begin(self)

    async def join(self) -> None:
        """Start the network part.  Raises `P2pDown`."""
        from kvswap.exchange.serving.answers import answer

        assert self.transport is not None  # noqa: S101 - both callers looked
        server = Server(lambda caller, request: answer(self, caller, request), self._unwelcome, self.flooded)
        self.tables.add(*server.tables)
        try:
            await self.transport.start(server, self._heard)
        except KvswapError as error:
            if self.problems.note("p2p", error):
                self.tell_problem("p2p", error.message)
            raise

    async def serve_bulk(self) -> None:
        """Serve HTTPS beside libp2p, on the same addresses.  Without it, libp2p streams carry the chunks.

        Raises `P2pDown` where that is not possible now.
        """
        hosts = [host for a in self.settings.listen if (host := _host_of(a)) is not None]
        if self._bulk_server is not None or not self.settings.bulk or self.node_key is None or not hosts:
            return
        server = BulkServer(BulkIdentity.create(self.node_key), self.tokens, self.uploads, self.problems)
        try:
            await server.start(list(dict.fromkeys(hosts)), self.settings.bulk_port)
        except KvswapError as error:
            if self.problems.note("bulk", error):
                self.tell_problem("bulk", error.message)
            raise
        self._bulk_server = server

    def tell_problem(self, name: str, why: str | None) -> None:
        """Note in the events that a part does not work any more, or (`why` is None) that it works again."""
        kind = {"p2p": "p2p", "bulk": "bulk"}.get(name, "upkeep")
        about = {"part": name} if kind == "upkeep" else {}
        if why is None:
            self.events.add(f"{kind}_up", **about)
        else:
            self.events.add(f"{kind}_down", reason=why, **about)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside the requests, until it ends or the node stops.  On the event loop."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._ended)
        return task

    def spawn_from(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do so from any thread with what `work` makes."""
        self._on_loop.call(lambda: self.spawn(work()))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        name = getattr(task.get_coro(), "__name__", "task")
        if (error := task.exception()) is None:
            self.problems.clear_one(name)
        else:
            self.problems.note(name, error)  # never silently: `kvswap status` shows it
            self.events.add("task_failed", task=name, reason=self.problems[name])

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._bulk_server is not None:
            await self._bulk_server.stop()
        await self.bulk.close()
        if self.sessions is not None:
            await self.sessions.close()
        if self.transport is not None:
            await self.transport.stop()
        await asyncio.to_thread(self.calibration.close)
        await asyncio.to_thread(self.ledger.close)
        await asyncio.to_thread(self.records.close)

    # -- announcing ------------------------------------------------------------------------------

    def tell(self, artifact: str, document: str | None, *, here: bool = True) -> None:
        """Announce what is new: gossip it now, and give its provider records when their turn comes.

        `here`: it is in the store; where it is not any more at its turn, it gets no records.
        """
        if self.p2p:
            self.spawn(self.gossip(artifact, document))
            self.providing.add(artifact, document, here)

    async def announce(self, artifact: str, document: str | None) -> None:
        """Gossip an artifact and give provider records for it and its document, all at once.  Best effort."""
        await self.gossip(artifact, document)
        try:
            if self.p2p:
                await self.providing.give(artifact, document)
        except KvswapError as error:
            self.events.add("announce_failed", artifact=artifact, reason=error.message)

    async def gossip(self, artifact: str, document: str | None) -> None:
        """Tell peers of an artifact, unless it may not be offered.  Best effort."""
        if not self.p2p or self.transport is None:
            return
        if not await asyncio.to_thread(self.may_tell, artifact):
            return
        mine = messages.Provider(self.transport.peer, self.transport.addresses()[:8])
        try:
            await self.transport.announce(messages.encode_announce(messages.Announce(artifact, document, mine)))
        except KvswapError as error:
            self.events.add("announce_failed", artifact=artifact, reason=error.message)

    def may_tell(self, artifact: str) -> bool:
        """Say whether peers may hear of an artifact: one that is not here, or one that is offered.  Blocks."""
        row = self.store.get_artifact(artifact)
        return row is None or self.permission.offered(row)

    def _heard(self, announcement: Announcement) -> None:
        try:
            heard = messages.decode_announce(announcement.data)
            PeerId.parse(heard.provider.peer)
            Cid.parse(heard.artifact)
        except (MalformedMessage, UsageError):
            return
        if heard.provider.peer != announcement.origin:
            return  # nobody announces for somebody else
        self.catalogues.expire(heard.provider.peer)
        self.hearsay.announced(heard.provider.peer)
        provider = messages.Provider(heard.provider.peer, list(self._of_gossip(heard.provider)))
        for reference in (heard.artifact, heard.document):
            if reference is not None:
                self.hearsay.refer(reference, provider, announcement.via or announcement.origin)
        self.events.add("heard", artifact=heard.artifact, document=heard.document, peer=heard.provider.peer)
        self.spoken.note(heard.artifact, announcement.origin)

    def _of_gossip(self, provider: messages.Provider) -> tuple[str, ...]:
        """The addresses that a peer said of itself, as far as they may be dialled; and passed on to others."""
        if self.transport is None:
            return ()
        near = provider.peer in self.transport.connected()
        teller = self.transport.host_of(provider.peer) if near else self.transport.vicinity()
        return allowed(provider.addresses, teller)

    def referrals(self, reference: str) -> list[PeerAddress]:
        """Return who may have this, as far as was heard."""
        return [referral.address for referral in self.hearsay.known(reference)]


def peer_of(address: str) -> str:
    """The PeerId at the end of a multiaddr.  Raises `UsageError`."""
    _, found, peer = address.rpartition("/p2p/")
    if not found:
        raise UsageError(f"the address {address!r} has no /p2p/ part", hint="kvswap id  prints whole addresses")
    return str(PeerId.parse(peer))


def _seconds(samples: list[list[int]]) -> list[tuple[int, int, float]]:
    return [(before, tokens, micros / 1e6) for before, tokens, micros in samples]


def document_key(document: str) -> bytes:
    """The 32-byte DHT key of `sha256:<hex>`."""
    return bytes.fromhex(document.removeprefix("sha256:"))


def _host_of(address: str) -> str | None:
    """The IP address of a listening multiaddr."""
    parts = address.split("/")
    return parts[2] if len(parts) > 2 and parts[1] in ("ip4", "ip6") else None
