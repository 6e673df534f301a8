"""A node: its keys, store, peers, policy and measurements, and the upkeep between requests."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvswap.core.errors import KvswapError, MalformedMessage, UsageError
from kvswap.core.ids import Cid, PeerId
from kvswap.core.limits import LIMITS
from kvswap.core.settings import Settings
from kvswap.core.version import __version__
from kvswap.cost import Calibration
from kvswap.exchange.events import EventLog
from kvswap.exchange.model_port import ModelChoice, ModelPort
from kvswap.net import Announcement, PeerAddress, Transport, messages
from kvswap.net.server import Server
from kvswap.store import Store
from kvswap.trust import Key, PolicyFile, load_or_create

AGENT = f"kvswap/{__version__}"
_REFERRALS_KEPT = 4_096
_ANNOUNCED_PER_ROUND = 64
_BOOTSTRAP_SECONDS = 5.0


@dataclass(slots=True)
class PeerRecord:
    """What this node experienced with a peer since it started."""

    bytes_in: int = 0
    bytes_out: int = 0
    failures: int = 0
    lies: int = 0  # chunks that were not what was asked for
    publisher: str = ""


@dataclass(slots=True)
class Counters:
    """Totals since start, for metrics."""

    published: int = 0
    fetched: int = 0
    plans_prefill: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rejected_chunks: int = 0
    started: float = field(default_factory=time.time)


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
    ) -> None:
        self.settings = settings
        self.store = store
        self.transport = transport
        self.model = model
        self.publisher = publisher
        self.policy = policy
        self.calibration = calibration
        self.events = EventLog()
        self.peers: dict[str, PeerRecord] = {}
        self.counters = Counters()
        self.problems: dict[str, str] = {}  # what is degraded, by part
        self._referrals: OrderedDict[str, dict[str, tuple[str, ...]]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    @staticmethod
    def keys(home: Path) -> tuple[Key, Key]:
        """(node key, publisher key), made on first use."""
        directory = home / "keys"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return load_or_create(directory / "node.key"), load_or_create(directory / "publisher.key")

    def record(self, peer: str) -> PeerRecord:
        if peer not in self.peers and len(self.peers) >= _REFERRALS_KEPT:
            self.peers.pop(next(iter(self.peers)))
        return self.peers.setdefault(peer, PeerRecord())

    def learn_prefill(self, choice: ModelChoice, samples: list[list[int]]) -> None:
        """Keep the block times of a prefill just done: [tokens before, tokens, microseconds] from the model process."""
        seconds = [(before, tokens, micros / 1e6) for before, tokens, micros in samples]
        self.calibration.add_prefill(choice.calibration_key, seconds)

    @property
    def p2p(self) -> bool:
        return self.transport is not None and self.transport.alive

    # -- life ------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Join the network.  A failure there degrades the node and is reported; the rest works."""
        from kvswap.exchange.serve import answer

        if self.transport is None:
            return
        try:
            await self.transport.start(Server(lambda peer, request: answer(self, peer, request)), self._heard)
        except KvswapError as error:
            self.problems["p2p"] = error.message
            self.events.add("p2p_down", reason=error.message)
            return
        self.spawn(self._keep_bootstrapped())
        self.spawn(self._keep_announcing())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the requests, until it ends or the node stops."""
        task = asyncio.create_task(work)
        self._tasks.add(task)  # the loop itself keeps only a weak reference
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            name = getattr(task.get_coro(), "__name__", "task")
            self.problems[name] = f"{type(error).__name__}: {error}"  # never silently: `kvswap status` shows it
            self.events.add("task_failed", task=name, reason=self.problems[name])

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.transport is not None:
            await self.transport.stop()
        self.calibration.save()

    async def _keep_bootstrapped(self) -> None:
        assert self.transport is not None  # noqa: S101 - started only with one
        while True:
            connected = set(self.transport.connected())
            for address in self.settings.bootstrap:
                try:
                    peer = peer_of(address)
                    if peer not in connected and peer != self.transport.peer:
                        await self.transport.connect(PeerAddress(peer, (address,)))
                        self.events.add("connected", peer=peer, how="bootstrap")
                    self.problems.pop(f"bootstrap {address}", None)
                except KvswapError as error:
                    self.problems[f"bootstrap {address}"] = error.message
            self._check_p2p()
            await asyncio.sleep(_BOOTSTRAP_SECONDS if self.settings.bootstrap else 1.0)

    def _check_p2p(self) -> None:
        if not self.p2p and "p2p" not in self.problems:
            self.problems["p2p"] = "the peer-to-peer part stopped"
            self.events.add("p2p_down", reason="it stopped")

    # -- announcing ------------------------------------------------------------------------------

    async def _keep_announcing(self) -> None:
        """Tell peers we meet about what we hold: a record given to nobody is found by nobody."""
        met: set[str] = set()
        while True:
            connected = set(self.transport.connected()) if self.transport else set()
            if connected - met:
                await asyncio.sleep(1.0)  # let the handshakes of GossipSub and Kademlia settle
                rows = await asyncio.to_thread(self.store.artifacts)
                for row in [r for r in rows if r.complete][:_ANNOUNCED_PER_ROUND]:
                    await self.announce(row.id, row.document)
            met = connected
            await asyncio.sleep(1.0)

    async def announce(self, artifact: str, document: str | None) -> None:
        """Gossip an artifact and give provider records for it and its document.  Best effort."""
        if not self.p2p or self.transport is None:
            return
        mine = messages.Provider(self.transport.peer, self.transport.addresses()[:8])
        try:
            await self.transport.announce(messages.encode_announce(messages.Announce(artifact, document, mine)))
            await self.transport.provide(Cid.parse(artifact).digest)
            if document is not None:
                await self.transport.provide(document_key(document))
        except KvswapError as error:
            self.events.add("announce_failed", artifact=artifact, reason=error.message)

    def _heard(self, announcement: Announcement) -> None:
        try:
            heard = messages.decode_announce(announcement.data)
            PeerId.parse(heard.provider.peer)
            Cid.parse(heard.artifact)
        except (MalformedMessage, UsageError):
            return
        if heard.provider.peer != announcement.origin:
            return  # nobody announces for somebody else
        self.refer(heard.artifact, heard.provider)
        if heard.document is not None:
            self.refer(heard.document, heard.provider)
        self.events.add("heard", artifact=heard.artifact, document=heard.document, peer=heard.provider.peer)

    def refer(self, reference: str, provider: messages.Provider) -> None:
        """Remember that a peer may have this; bounded, oldest forgotten."""
        row = self._referrals.pop(reference, {})
        row[provider.peer] = tuple(provider.addresses)
        while len(row) > LIMITS.find_results:
            row.pop(next(iter(row)))
        self._referrals[reference] = row
        while len(self._referrals) > _REFERRALS_KEPT:
            self._referrals.popitem(last=False)

    def referrals(self, reference: str) -> list[PeerAddress]:
        return [PeerAddress(peer, addresses) for peer, addresses in self._referrals.get(reference, {}).items()]


def peer_of(address: str) -> str:
    """The PeerId at the end of a multiaddr.  Raises `UsageError`."""
    _, found, peer = address.rpartition("/p2p/")
    if not found:
        raise UsageError(f"the address {address!r} has no /p2p/ part", hint="kvswap id  prints whole addresses")
    return str(PeerId.parse(peer))


def document_key(document: str) -> bytes:
    """The 32-byte DHT key of `sha256:<hex>`."""
    return bytes.fromhex(document.removeprefix("sha256:"))
