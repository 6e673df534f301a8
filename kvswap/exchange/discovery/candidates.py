"""The step from offers to signed envelopes: several at once, every peer in its turn, by one deadline.

An offer is a word.  A peer that offers much and gives nothing must not hold up those that give: so the first offer of
each peer comes before the second of any, who failed once is not asked again, who is slow makes way for the next, and
when the time is over, it is over for all of them together.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from kvswap.core.errors import IntegrityError, KvswapError, NotFound
from kvswap.core.failures import is_own
from kvswap.core.limits import LIMITS
from kvswap.exchange.discovery.lookup import PeerOffer
from kvswap.exchange.node.node import Node
from kvswap.net import PeerAddress, messages
from kvswap.trust.envelopes import names

_AT_ONCE = 8
_SLOW_SECONDS = 1.5  # who takes longer makes way for one more,
_UNDER_WAY = 24  # up to so many
_OF_ONE_PEER = 2  # requests to one peer at once
_INLINE_OF_ONE_PEER = 4  # envelopes that come with one answer
_MOST = 256  # that are looked at for one reference


@dataclass(slots=True)
class Candidate:
    """An artifact that is offered, the peers that offer it, and its envelope where one came along.  Unverified."""

    artifact: str
    peers: list[str] = field(default_factory=list)
    envelope: bytes | None = None
    inline_from: str = ""
    available: dict[str, int] = field(default_factory=dict)  # by peer: blocks that it says are shared


Rank = Callable[[PeerOffer], tuple[int, ...]]


def round_robin(offers: Sequence[PeerOffer], rank: Rank, first: Callable[[str], bool]) -> list[Candidate]:
    """Order the offered artifacts: the best of each peer before the second best of any; smaller ranks are better.

    Peers for which `first(peer)` holds - those that delivered before - come first among equals.
    """
    held: Counter[str] = Counter(artifact for artifact, _ in {(o.found.artifact, o.peer) for o in offers})
    by_peer: dict[str, list[PeerOffer]] = defaultdict(list)
    for offer in offers:
        by_peer[offer.peer].append(offer)

    def order(offer: PeerOffer) -> tuple[object, ...]:
        return (*rank(offer), not first(offer.peer), not offer.found.complete, -held[offer.found.artifact])

    for mine in by_peer.values():
        mine.sort(key=order)
    candidates: dict[str, Candidate] = {}
    for turn in range(max(map(len, by_peer.values()), default=0)):
        for offer in sorted((mine[turn] for mine in by_peer.values() if turn < len(mine)), key=order):
            if offer.found.artifact not in candidates and len(candidates) < _MOST:
                candidates[offer.found.artifact] = Candidate(offer.found.artifact)
    inline: Counter[str] = Counter()
    for offer in sorted(offers, key=order):
        candidate = candidates.get(offer.found.artifact)
        if candidate is None:
            continue
        if offer.peer not in candidate.peers:
            candidate.peers.append(offer.peer)
        fresh = candidate.envelope is None and inline[offer.peer] < _INLINE_OF_ONE_PEER
        if offer.found.envelope is not None and fresh:
            inline[offer.peer] += 1
            candidate.envelope, candidate.inline_from = offer.found.envelope, offer.peer
    whole = {(o.found.artifact, o.peer) for o in offers if o.found.complete}
    for name, candidate in candidates.items():  # those that hold it whole before those that are still fetching it
        have = [peer for peer in candidate.peers if (name, peer) in whole]
        candidate.peers = have + [peer for peer in candidate.peers if (name, peer) not in whole]
    return list(candidates.values())


class EnvelopeFetcher:
    """The envelopes of candidates, each as soon as it is here: first those that are here already or came along.

    Iterating gives (candidate, envelope), or the error of a candidate that no peer gave.
    """

    def __init__(self, node: Node, candidates: Sequence[Candidate], deadline: float) -> None:
        """`deadline`: of all of it together, in seconds of the monotonic clock."""
        self._node = node
        self._candidates = list(candidates)
        self._deadline = deadline
        self._todo: deque[tuple[Candidate, int]] = deque()  # and which of its peers is next
        self._running: dict[asyncio.Task[bytes], tuple[Candidate, int, float]] = {}
        self._slow: set[asyncio.Task[bytes]] = set()
        self._done: set[str] = set()
        self._lacked: Counter[str] = Counter()  # by peer: offered, and not there
        self.failed: set[str] = set()  # peers that gave nothing, or nothing right: not asked again

    def within(self, seconds: float) -> None:
        """Limit the time that is left to `seconds` from now: something usable was found."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def wrong(self, candidate: Candidate) -> None:
        """Note that an artifact is not what was looked for: the peer that gave its envelope is not asked any more."""
        if candidate.inline_from:
            self.failed.add(candidate.inline_from)

    async def __aiter__(self) -> AsyncIterator[tuple[Candidate, bytes | KvswapError]]:
        asked: list[Candidate] = []
        for candidate in self._candidates:
            stored = await asyncio.to_thread(self._node.store.envelope, candidate.artifact)
            if stored is not None:
                candidate.inline_from = ""
                yield candidate, stored
            elif candidate.envelope is None or candidate.inline_from in self.failed:
                asked.append(candidate)
            elif await _is_of(candidate.envelope, candidate.artifact):
                yield candidate, candidate.envelope
            else:
                self.failed.add(candidate.inline_from)
                if self.failed.issuperset(candidate.peers):
                    yield candidate, _another(candidate.inline_from, candidate.artifact)
                asked.append(candidate)  # of whoever else has it
        self._todo.extend((candidate, 0) for candidate in asked)
        while self._todo or self._running:
            self._start()
            if not self._running:
                break
            left = self._deadline - time.monotonic()
            if left <= 0:
                break
            done, _ = await asyncio.wait(
                self._running, timeout=min(left, _SLOW_SECONDS / 3), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                outcome = self._ended(task)
                if outcome is not None:
                    yield outcome
            self._free_capacity()

    def _start(self) -> None:
        """Ask the peers whose turn it is."""
        mine = Counter(candidate.peers[at] for candidate, at, _ in self._running.values())
        later: list[tuple[Candidate, int]] = []
        while self._todo and len(self._running) < _UNDER_WAY and len(self._running.keys() - self._slow) < _AT_ONCE:
            candidate, at = self._todo.popleft()
            while at < len(candidate.peers) and candidate.peers[at] in self.failed:
                at += 1
            if candidate.artifact in self._done or at >= len(candidate.peers):
                continue
            peer = candidate.peers[at]
            if mine[peer] >= _OF_ONE_PEER:
                later.append((candidate, at))
                continue
            mine[peer] += 1
            # Never cancelled: what is cut off inside libp2p may take its connection along.  It ends by itself.
            task = asyncio.ensure_future(self._ask(peer, candidate.artifact))
            task.add_done_callback(_looked_at)
            self._running[task] = (candidate, at, time.monotonic())
        self._todo.extendleft(reversed(later))

    async def _ask(self, peer: str, artifact: str) -> bytes:
        envelope = await self._node.network.ask(PeerAddress(peer), messages.GetManifest(artifact), bytes)
        if not await _is_of(envelope, artifact):
            raise _another(peer, artifact)
        return envelope

    def _ended(self, task: asyncio.Task[bytes]) -> tuple[Candidate, bytes | KvswapError] | None:
        candidate, at, _ = self._running.pop(task)
        self._slow.discard(task)
        peer = candidate.peers[at]
        try:
            envelope = task.result()
        except (KvswapError, TimeoutError) as error:
            outcome = error if isinstance(error, KvswapError) else NotFound(f"nobody gives {candidate.artifact}")
            if is_own(outcome):
                return candidate, outcome  # of which no other peer can be the way out
            self._lacked[peer] += isinstance(error, NotFound)
            if peer not in self.failed and self._lacked[peer] != 1:  # once it may have gone just now
                self.failed.add(peer)
                self._node.peers.blame(peer, outcome)
            if candidate.artifact in self._done:
                return None
            self._todo.appendleft((candidate, at + 1))
            return (candidate, outcome) if at + 1 >= len(candidate.peers) else None
        if candidate.artifact in self._done:
            return None
        self._done.add(candidate.artifact)
        candidate.inline_from = peer
        return candidate, envelope

    def _free_capacity(self) -> None:
        """Take slow requests off the count, and ask another peer for the same."""
        now = time.monotonic()
        for task, (candidate, at, since) in self._running.items():
            if task not in self._slow and now - since > _SLOW_SECONDS:
                self._slow.add(task)
                self._todo.append((candidate, at + 1))


async def _is_of(envelope: bytes, artifact: str) -> bool:
    """Return True if this is the signed envelope of an artifact, whatever else is wrong with it.

    Whose word an offer is says nothing of others who offer the same: a wrong envelope must hide no right one.
    """
    if len(envelope) <= LIMITS.inline_envelope_bytes:
        return names(envelope, artifact)
    return await asyncio.to_thread(names, envelope, artifact)


def _another(peer: str, artifact: str) -> IntegrityError:
    return IntegrityError(f"{peer} gave no envelope of {artifact}, which it offers", cause="a broken or malicious peer")


def _looked_at(task: asyncio.Task[bytes]) -> None:
    """Take note of a task's error, which may be for nobody any more."""
    if not task.cancelled():
        task.exception()
