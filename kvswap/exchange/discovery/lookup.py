"""Look-ups: connected peers, what was announced, provider records, and the peers that those refer to.

Connected peers are asked first, all at once.  Whom others name has to be dialled, on nobody's word but theirs: a few
at a time, those that delivered before first, then one of each sender in turn, senders whose last ones led nowhere last.
The first offer starts a short grace in which other connected peers may still answer; a referral that has to be
dialled first is worth waiting for only while there is no offer.  Without one, and once everybody known has answered,
waiting is for peers yet to be met: worth a few seconds to a node that just started, half a second to one that has been
there for a while.  Who delivered before is waited for longer while nobody else offers anything, and asked after all
when it is in backoff for failures alone, or was not reached lately: a flood, or a busy machine, may have made it late.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from kvswap.core.errors import KvswapError
from kvswap.core.failures import record
from kvswap.core.ids import Cid, document_key
from kvswap.core.limits import LIMITS
from kvswap.exchange.node.address_book import RECORDS
from kvswap.exchange.node.node import AGENT, Node
from kvswap.exchange.verification.audits import receive_audits
from kvswap.exchange.verification.received import kept_for_later
from kvswap.exchange.verification.status_records import receive_status_records
from kvswap.net import PeerAddress, Unreachable, messages

_GRACE_SECONDS = 0.15
_POLL_SECONDS = 0.1
_NEIGHBOURS_FIRST_SECONDS = 0.05
_PATIENCE_SECONDS = 0.5
_YOUNG_SECONDS = 15.0  # a node this young may still be finding its first peers
_FAR_AT_ONCE = 8  # of those that have to be dialled;
_SLOW_SECONDS = 1.5  # who takes longer makes way for one more,
_FAR_UNDER_WAY = 24  # up to so many,
_FAR_MOST = 96  # and so many in one look-up
_OF_ONE_SENDER = 32


@dataclass(frozen=True, slots=True)
class PeerOffer:
    """A peer's word that it has an artifact.  Unverified."""

    peer: str
    found: messages.Found


async def find(
    node: Node, query: messages.Find, seconds: float = LIMITS.lookup_seconds, only: Sequence[str] | None = None
) -> list[PeerOffer]:
    """Find offers for a document, an artifact, or a chain of digests; none when nobody answered.

    `only`: ask these peers and no others.
    """
    offers, _ = await ask_these(node, query, seconds, only)
    return offers


async def ask_these(
    node: Node, query: messages.Find, seconds: float, only: Sequence[str] | None
) -> tuple[list[PeerOffer], set[str]]:
    """Find offers as `find` does, and return them with the peers that answered at all.

    Raises this node's own trouble, such as a full disk, where it left no offer.
    """
    if not node.p2p and not node.origins.names:
        return [], set()
    lookup = _Lookup(node, query, only)
    await lookup.run(seconds)
    if lookup.own is not None and not lookup.offers:
        raise lookup.own  # not "nobody has it"
    return list(lookup.offers), lookup.answered


async def holders(node: Node, artifact: Cid, files: Sequence[Cid]) -> tuple[str, ...]:
    """Find peers that have an artifact which lies here in part; nobody is asked where all of `files` are here."""
    if not await asyncio.to_thread(node.store.missing, files):
        return ()
    query = messages.Find(AGENT, artifact=str(artifact), bulk=node.settings.bulk)
    offers = await find(node, query)
    offers.sort(key=lambda offer: not offer.found.complete)
    return tuple(dict.fromkeys(offer.peer for offer in offers if offer.found.artifact == str(artifact)))


class _Far:
    """Peers that have to be dialled first, by who named them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._first: deque[tuple[PeerAddress, str]] = deque()  # those that delivered before
        self._named: dict[str, deque[PeerAddress]] = {}
        self._dead_ends: Counter[str] = Counter()  # failures by sender
        self._turns: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._first or self._named)

    def add(self, address: PeerAddress, sender: str) -> None:
        if self._node.peers.delivered(address.peer):
            self._first.append((address, sender))
            return
        named = self._named.setdefault(sender, deque())
        if len(named) < _OF_ONE_SENDER:
            named.append(address)

    def next(self) -> tuple[PeerAddress, str] | None:
        """Take the one whose turn it is."""
        if self._first:
            return self._first.popleft()
        if not self._named:
            return None
        sender = min(self._named, key=lambda name: (self._dead_ends[name], self._turns[name]))
        address = self._named[sender].popleft()
        if not self._named[sender]:
            del self._named[sender]
        self._turns[sender] += 1
        return address, sender

    def led_nowhere(self, sender: str) -> None:
        self._dead_ends[sender] += 1


class _Lookup:
    def __init__(self, node: Node, query: messages.Find, only: Sequence[str] | None) -> None:
        self._node = node
        self._transport = node.transport
        self._query = query
        self._reference = query.document or query.artifact
        self._only = only
        self._seen: set[str] = {node.transport.peer}
        self.offers: list[PeerOffer] = []
        self.own: KvswapError | None = None  # this node's own trouble, such as a full disk
        self.answered: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking = 0
        self._near: set[str] = set()  # connected peers that have been asked and have not answered
        self._proven: set[str] = set()  # those of them that delivered before
        self._spared: list[str] = []  # connected peers that were not asked, because they rest
        self._away: list[tuple[PeerAddress, str]] = []  # that delivered before, and are not dialled for a while
        self._far = _Far(node)
        self._dialling: dict[str, float] = {}  # since when
        self._dialled = 0
        self._records_read = False
        self._over = False

    async def run(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        late = time.monotonic() + (LIMITS.request_seconds if seconds >= LIMITS.lookup_seconds else seconds)
        young = time.time() - self._node.counters.started < _YOUNG_SECONDS
        patience = seconds if young and self._only is None else _PATIENCE_SECONDS
        patience = patience if self._node.p2p else 0.0  # nobody is yet to be met
        first_at: float | None = None
        last_busy = time.monotonic()
        self._records_read = self._reference is None or self._only is not None
        self._ask_near()
        if self._reference is not None and self._only is None:
            self._spawn(self._ask_providers())
            for referral in self._node.network.address_book.known(self._reference):
                self._consider(referral.address, referral.sender)
        try:
            while time.monotonic() < (late if self._proven and not self.offers else deadline) or self._ask_again():
                self._ask_near()
                self._ask_far()
                if self.offers:
                    first_at = first_at or time.monotonic()
                    # Those yet to be dialled join the transfer when they answer; they are not waited for.
                    if not self._near or time.monotonic() > first_at + _GRACE_SECONDS:
                        break
                if self._asking > 0 or self._far or not self._records_read:
                    last_busy = time.monotonic()
                elif not self._ask_again() and time.monotonic() > last_busy + patience:
                    break
                if self._tasks:
                    wait = _GRACE_SECONDS / 5 if self.offers else _POLL_SECONDS
                    await asyncio.wait(self._tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                else:
                    await asyncio.sleep(_POLL_SECONDS)
        finally:
            self._over = True

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        # Never cancelled: what is cut off inside libp2p may take its connection along.  All of it ends
        # by itself, and a peer that was dialled in vain for this look-up is there for the next.
        task = self._node.background.spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- whom to ask -----------------------------------------------------------------------------

    def _ask_near(self) -> None:
        """Ask who is connected, and origins: outside every budget, as they are bounded as connections are."""
        connected = self._node.network.near()
        for peer in connected if self._only is None else self._only:
            if peer in self._seen:
                continue
            if peer in connected:
                self._seen.add(peer)
                if not self._node.peers.backoff_seconds(peer):
                    self._near.add(peer)
                    if self._node.peers.delivered(peer):
                        self._proven.add(peer)
                    self._ask_soon(PeerAddress(peer), "")
                else:
                    self._spared.append(peer)
            elif self._only is not None:
                self._consider(PeerAddress(peer), peer)

    def _ask_again(self) -> bool:
        """Ask who delivered before and rests for failures alone: sooner than to say that nobody has it."""
        self._spared = [peer for peer in self._spared if self._node.peers.paused(peer)] if not self.offers else []
        for peer in self._spared:
            self._near.add(peer)
            self._proven.add(peer)
            self._ask_soon(PeerAddress(peer), "")
        away, self._away = (self._away, []) if not self.offers else ([], self._away)
        for address, sender in away[: max(0, _FAR_MOST - self._dialled)]:
            self._dial(address, sender)
            self._proven.add(address.peer)
        asked, self._spared = bool(self._spared or away), []
        return asked

    def _consider(self, address: PeerAddress, sender: str) -> None:
        """Line up a peer that somebody names as having it."""
        if address.peer not in self._seen and not self._over:
            self._seen.add(address.peer)
            if not self._node.peers.backoff_seconds(address.peer):  # failed or sent invalid data lately, or blocked
                self._far.add(address, sender)

    def _ask_far(self) -> None:
        """Dial a few of those who are not connected."""
        while self._far and self._dialled < _FAR_MOST and len(self._dialling) < _FAR_UNDER_WAY:
            slow = time.monotonic() - _SLOW_SECONDS
            if sum(since > slow for since in self._dialling.values()) >= _FAR_AT_ONCE:
                return
            address, sender = self._far.next() or (None, "")
            worth = self._node.network.address_book.reachable(address, sender) if address is not None else None
            if worth is not None:
                self._dial(worth, sender)
            elif address is not None and self._node.peers.delivered(address.peer):
                self._away.append((address, sender))

    def _dial(self, address: PeerAddress, sender: str) -> None:
        self._dialled += 1
        self._dialling[address.peer] = time.monotonic()
        self._ask_soon(address, sender)

    def _ask_soon(self, address: PeerAddress, sender: str) -> None:
        self._asking += 1
        self._spawn(self._ask_one(address, sender))

    async def _ask_providers(self) -> None:
        key = (
            document_key(self._query.document) if self._query.document else Cid.parse(str(self._query.artifact)).digest
        )
        if self._transport.connected():  # a walk through the DHT would hold up the answers of neighbours
            await asyncio.sleep(_NEIGHBOURS_FIRST_SECONDS)
        while not self._over:  # records arrive while we look; each round is cheap when nothing is known
            try:
                for address in await self._transport.find_providers(key):
                    self._consider(address, RECORDS)
            except KvswapError:
                pass
            self._records_read = True
            await asyncio.sleep(1.0)

    # -- asking ----------------------------------------------------------------------------------

    async def _ask_one(self, address: PeerAddress, sender: str) -> None:
        try:
            await self._ask(address, sender)
        except Unreachable:
            self._far.led_nowhere(sender)
            if self._reference is not None:
                self._node.network.address_book.forget(self._reference, address.peer)
        except Exception as error:  # noqa: BLE001 - what is not the peer's is kept, and told if nothing is found
            if self._node.peers.blame(address.peer, error):
                self._far.led_nowhere(sender)
            else:
                self.own = record(error, "looking up")
        finally:
            self._asking -= 1
            self._near.discard(address.peer)
            self._proven.discard(address.peer)
            self._dialling.pop(address.peer, None)

    def _receive(self, reply: messages.FindReply, peer: str) -> None:
        # What comes with an answer is obeyed before the offers in it are used; that it cannot be kept loses none.
        with kept_for_later(self._node):
            receive_status_records(self._node, reply.heads, peer)
        with kept_for_later(self._node):
            receive_audits(self._node, reply.audits, peer, self._query.document)

    async def _ask(self, address: PeerAddress, sender: str) -> None:
        peer = address.peer
        await self._node.network.reach(address, LIMITS.referral_dial_seconds, sender)
        async with asyncio.timeout(LIMITS.request_seconds if peer in self._proven else LIMITS.lookup_seconds):
            began = time.perf_counter()
            reply = await self._node.network.ask(PeerAddress(peer), self._query, messages.FindReply)
            self._node.calibration.add_latency(peer, time.perf_counter() - began)
            with self._node.ledger.changing(peer) as known:
                known.publisher = reply.publisher
            self._node.peers.set_ask_price(peer, reply.asks / 1e6)
        if reply.heads or reply.audits:
            await asyncio.to_thread(self._receive, reply, peer)
        if reply.grant is not None:
            self._node.peers.bulk_tickets.put(
                peer, reply.grant, [found.artifact for found in reply.found if found.complete]
            )
        self.answered.add(peer)
        self.offers += [PeerOffer(peer, found) for found in reply.found]
        host = self._transport.host_of(peer)
        for provider in reply.providers[: LIMITS.find_results] if self._only is None else ():
            self._consider(PeerAddress(provider.peer, tuple(provider.addresses), host), peer)
