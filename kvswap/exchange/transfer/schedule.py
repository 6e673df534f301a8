"""The download schedule: which peer is asked for which chunk, when.

It is pure: no clock, no IO, no randomness but the given one.

*Which chunk*: the reader's order is cut into waves; the first unfinished wave goes first, within it
the chunk that fewest peers have (BitTorrent's rarest first: it spreads what only one peer can give),
ties by lot, so that readers who start together do not all ask for the same.

*Whom*: a peer may hold some chunks in flight: enough to keep it busy for `_BUSY_SECONDS` at the rate
it showed, never more than the cap.  A peer whose rate is not known gets two.  And it is given a chunk
only if it would be done with it by the time that all peers together will be done, so a slow one is
not left holding the last chunks.

*Twice*: when nothing is left to give, a free peer takes over (*hedges*) the chunk that is expected
latest, if it would have it well before; whoever is first wins and the other is stopped.  A peer that
went silent loses its chunks the same way, sooner.

*On whose word*: any number of peers may say to have something.  Those that never gave a whole chunk, now or
before, have a moment for theirs, however many come one after the other; then somebody who did takes it over.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kvswap.core.limits import LIMITS

_BUSY_SECONDS = 0.5
_WEIGHT = 0.3  # of the newest measurement in a peer's rate
_MEASURE_SECONDS = 0.25  # shortest interval a rate is taken over
_SILENT_SECONDS = 1.5  # without a byte: counted as stopped
_UNPROVEN_SECONDS = 0.5  # that a chunk is left to peers that never gave one
_TRIAL_SECONDS = 2.0  # what a peer that was never asked may take for one, by guess
_HEDGE_GAIN = 1.5  # the other must be expected to need so much longer
_HEDGE_MARGIN_SECONDS = 0.1
_HEDGE_SHARE = 0.1  # of all bytes, and a few more, at most, are asked for twice for slowness alone
_HEDGE_BYTES = 8 << 20
_SLACK_SECONDS = 0.25
_MOST_FLIGHTS = 8


@dataclass(slots=True)
class _Flight:
    began: float
    received: int = 0
    last: float = 0.0


@dataclass(slots=True)
class _ChunkState:
    length: int
    holders: set[str] = field(default_factory=set)
    flights: dict[str, _Flight] = field(default_factory=dict)
    state: str = "wanted"  # wanted, received (being checked and written), done
    receiver: str = ""  # whose bytes are being checked
    unproven_since: float | None = None  # first given to a peer that never gave one
    tried: bool = False  # and it failed at it


@dataclass(slots=True)
class _Peer:
    has: set[int] = field(default_factory=set)
    flights: set[int] = field(default_factory=set)
    rate: float | None = None  # bytes per second, all its flights together
    window_bytes: int = 0
    window_began: float = 0.0
    last: float = 0.0  # when something came
    measured_bytes: int = 0  # all that came after something else, and the seconds in between
    measured_seconds: float = 0.0
    idle: bool = True  # until the first byte of what was asked for after a pause: waiting for it is no transfer
    given: int = 0
    proven: bool = False  # gave a whole chunk, in this transfer or before


class Schedule:
    """The state of one transfer.  Chunks are numbered in the reader's order; `lengths` are in bytes."""

    def __init__(self, lengths: Sequence[int], *, wave: int = 64, rng: random.Random | None = None) -> None:
        self._chunks = [_ChunkState(length) for length in lengths]
        self._peers: dict[str, _Peer] = {}
        self._wave = max(1, wave)
        rng = rng or random.Random()  # noqa: S311 - spreading load, not a secret
        self._ties = [rng.random() for _ in lengths]
        self._unfinished = set(range(len(lengths)))
        self._first = 0  # the lowest chunk that is still wanted, or one before it
        self._hedged = 0
        self._total = sum(lengths)
        self.left_bytes = self._total

    # -- what is known ---------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """True if every chunk is done or not wanted any more."""
        return not self._unfinished

    @property
    def left(self) -> int:
        """The number of chunks that are not done."""
        return len(self._unfinished)

    def peers(self) -> list[str]:
        """List the peers that take part."""
        return list(self._peers)

    def rate(self, peer: str) -> float | None:
        """Return the present rate of a peer in bytes per second, or None while unknown."""
        record = self._peers.get(peer)
        return record.rate if record else None

    def mean_rate(self, peer: str) -> float | None:
        """Return a peer's bytes per second over all the time in which it was sending; None where that was too short."""
        record = self._peers.get(peer)
        if record is None or record.measured_seconds <= 0:
            return None
        return record.measured_bytes / record.measured_seconds

    def total_rate(self) -> float:
        """Sum up the known rates of all peers, in bytes per second."""
        return sum(p.rate or 0.0 for p in self._peers.values())

    def arriving(self) -> int:
        """Count the bytes received of chunks that are not done; of each chunk, from the peer that is furthest."""
        numbers = {i for peer in self._peers.values() for i in peer.flights} & self._unfinished
        under_way = (self._chunks[i] for i in numbers)
        return sum(max(f.received for f in chunk.flights.values()) for chunk in under_way)

    def flights(self, peer: str) -> int:
        """Count the chunks that a peer has in flight."""
        record = self._peers.get(peer)
        return len(record.flights) if record else 0

    # -- peers -----------------------------------------------------------------------------------

    def set_peer(self, peer: str, has: Iterable[int], rate: float | None = None) -> None:
        """Add a peer, or replace what it has; `rate` is what an earlier transfer showed, in bytes per second."""
        record = self._peers.setdefault(peer, _Peer(rate=rate, proven=rate is not None))
        new = {i for i in has if 0 <= i < len(self._chunks)}
        for index in record.has - new:
            self._chunks[index].holders.discard(peer)
        for index in new - record.has:
            self._chunks[index].holders.add(peer)
        record.has = new

    def drop_peer(self, peer: str) -> None:
        """Remove a peer that is gone: what it had under way is wanted again."""
        record = self._peers.pop(peer, None)
        if record is None:
            return
        for index in list(record.flights):
            self._land(index, peer)
        for index in record.has:
            self._chunks[index].holders.discard(peer)

    # -- giving out ------------------------------------------------------------------------------

    def next(self, peer: str, now: float) -> int | None:
        """Choose the chunk to ask this peer for, now counted as in flight.

        None where there is nothing for it at present.
        """
        record = self._peers.get(peer)
        if record is None or len(record.flights) >= self._window(record):
            return None
        index = self._wanted(peer, record)
        if index is None or not self._worth_giving(peer, record, index, now):
            index = self._hedge(peer, record, now)
        if index is None:
            return None
        chunk = self._chunks[index]
        chunk.flights[peer] = _Flight(now, 0, now)
        if chunk.unproven_since is None and not record.proven:
            chunk.unproven_since = now
        if not record.flights:
            record.window_began, record.window_bytes, record.idle = now, 0, True
        record.flights.add(index)
        return index

    def _window(self, record: _Peer) -> int:
        if record.rate is None:
            return 2 if record.given == 0 else 4
        mean = self._total / max(1, len(self._chunks))
        return max(1, min(LIMITS.chunks_per_peer, 1 + int(record.rate * _BUSY_SECONDS / mean)))

    def _wanted(self, peer: str, record: _Peer) -> int | None:
        chunks = self._chunks
        while self._first < len(chunks) and chunks[self._first].state == "done":
            self._first += 1
        best: tuple[int, float] | None = None
        chosen = None
        wave = None
        for index in range(self._first, len(chunks)):
            if wave is not None and index // self._wave > wave:
                break
            chunk = chunks[index]
            if chunk.state != "wanted" or chunk.flights or index not in record.has:
                continue
            wave = index // self._wave
            rank = (len(chunk.holders), self._ties[index])
            if best is None or rank < best:
                best, chosen = rank, index
        return chosen

    def _worth_giving(self, peer: str, record: _Peer, index: int, now: float) -> bool:
        chunk = self._chunks[index]
        if chunk.tried and not record.proven and any(self._proves(p, now) for p in chunk.holders):
            return False
        others = [p for p in chunk.holders if p != peer and self._peers[p].rate]
        if record.rate is None or not others:
            return True
        mine = (self._in_flight(record) + chunk.length) / max(1.0, record.rate)
        together = self.left_bytes / max(1.0, self.total_rate())
        alone = min((self._in_flight(self._peers[p]) + chunk.length) / (self._peers[p].rate or 1.0) for p in others)
        return mine <= max(together, alone) + _SLACK_SECONDS

    def _proves(self, peer: str, now: float) -> bool:
        """Return True if a peer gave a chunk before, and goes on doing so."""
        record = self._peers[peer]
        flights = [self._chunks[i].flights[peer] for i in record.flights]
        return record.proven and (not flights or any(now - f.last <= _SILENT_SECONDS for f in flights))

    def _in_flight(self, record: _Peer) -> int:
        return sum(self._chunks[i].length for i in record.flights)

    def _hedge(self, peer: str, record: _Peer, now: float) -> int | None:
        """Choose the chunk expected latest that this peer would have well before."""
        worst, chosen = 0.0, None
        for index in record.has & self._unfinished:
            chunk = self._chunks[index]
            if chunk.state != "wanted" or not chunk.flights or peer in chunk.flights:
                continue
            # Those that went silent do not count: a chunk may be with several of them.
            living = [(p, f) for p, f in chunk.flights.items() if now - f.last <= _SILENT_SECONDS]
            flights = len(chunk.flights)
            if record.proven:
                flights = sum(self._peers[p].proven for p in chunk.flights)
                if chunk.unproven_since is not None and now - chunk.unproven_since > _UNPROVEN_SECONDS:
                    living = [(p, f) for p, f in living if self._peers[p].proven]
            silent = not living
            if len(living) > 1 or flights > _MOST_FLIGHTS:
                continue
            if not silent and self._hedged > _HEDGE_SHARE * self._total + _HEDGE_BYTES:
                continue
            need = 1e9 if silent else self._expected(living[0][0], chunk, living[0][1], now)
            mine = chunk.length / record.rate if record.rate else (0.0 if silent else self._guess(record))
            if need > _HEDGE_GAIN * mine + _HEDGE_MARGIN_SECONDS and need > worst:
                worst, chosen = need, index
        if chosen is not None:
            self._hedged += self._chunks[chosen].length
        return chosen

    @staticmethod
    def _guess(record: _Peer) -> float:
        """Guess the seconds for a chunk from an unknown peer; one trial, and no more until it gave something."""
        return float("inf") if record.given or record.flights else _TRIAL_SECONDS

    def _expected(self, peer: str, chunk: _ChunkState, flight: _Flight, now: float) -> float:
        """Estimate the seconds until this flight is done, by what it and its peer showed so far."""
        elapsed = max(now - flight.began, 1e-3)
        record = self._peers[peer]
        rate = flight.received / elapsed if flight.received and elapsed > _MEASURE_SECONDS else 0.0
        rate = rate or (record.rate or 0.0) / max(1, len(record.flights))
        return (chunk.length - flight.received) / rate if rate else elapsed

    # -- what happened ---------------------------------------------------------------------------

    def progress(self, peer: str, chunk: int, size: int, now: float) -> None:
        """Count `size` more bytes of a chunk that came from a peer, at the time `now`."""
        record, flight = self._peers.get(peer), self._chunks[chunk].flights.get(peer)
        if record is None or flight is None:
            return
        flight.received += size
        flight.last = now
        if size and not record.idle:
            record.measured_bytes += size
            record.measured_seconds += now - record.last
        record.last = now
        if record.idle and size:
            record.idle = False
            if flight.received < self._chunks[chunk].length:  # else all came at once, and only the asking took time
                record.window_began, size = now, 0
        record.window_bytes += size
        record.given += size
        elapsed = now - record.window_began
        if not record.window_bytes:
            return
        if elapsed >= _MEASURE_SECONDS or (record.rate is None and flight.received >= self._chunks[chunk].length):
            rate = record.window_bytes / max(elapsed, 1e-4)
            record.rate = rate if record.rate is None else record.rate + _WEIGHT * (rate - record.rate)
            record.window_bytes, record.window_began = 0, now

    def received(self, peer: str, chunk: int) -> list[str] | None:
        """Note that a whole chunk came from a peer; it is going to be checked.

        Returns the peers whose flights for it are now useless, or None when it came too late itself.
        """
        state = self._chunks[chunk]
        self._land(chunk, peer)
        if state.state != "wanted":
            return None
        state.state, state.receiver = "received", peer
        losers = list(state.flights)
        for loser in losers:
            self._land(chunk, loser)
        return losers

    def done(self, chunk: int) -> None:
        """Note that a chunk is in the store."""
        if chunk in self._unfinished:
            self._unfinished.discard(chunk)
            self.left_bytes -= self._chunks[chunk].length
            if (giver := self._peers.get(self._chunks[chunk].receiver)) is not None:
                giver.proven = True
        self._chunks[chunk].state = "done"

    def skip(self, chunk: int) -> list[str]:
        """Drop a chunk that is not wanted any more, and return the peers whose flights for it are now useless."""
        state = self._chunks[chunk]
        if state.state != "wanted":
            return []
        losers = list(state.flights)
        for loser in losers:
            self._land(chunk, loser)
        self.done(chunk)
        return losers

    def failed(self, peer: str, chunk: int) -> None:
        """Note that a flight ended without the chunk, or with a wrong one: it is wanted again."""
        self._land(chunk, peer)
        state = self._chunks[chunk]
        record = self._peers.get(peer)
        state.tried = state.tried or record is None or not record.proven
        if state.state == "received" and state.receiver == peer:
            state.state = "wanted"
            self._first = min(self._first, chunk)

    def lacks(self, peer: str, chunk: int) -> None:
        """Note that a peer does not have a chunk that it claimed to have."""
        record = self._peers.get(peer)
        if record is not None:
            record.has.discard(chunk)
        self._chunks[chunk].holders.discard(peer)

    def slow(self, peer: str, now: float) -> bool:
        """Return True if a peer with something in flight is below the slowest rate that is waited for."""
        record = self._peers.get(peer)
        if record is None or not record.flights:
            return False
        flights = [self._chunks[i].flights[peer] for i in record.flights]
        oldest = min(f.began for f in flights)
        elapsed = now - oldest
        got = sum(f.received for f in flights)
        return elapsed > LIMITS.slow_seconds and got < LIMITS.slowest_bytes_per_second * elapsed

    def _land(self, chunk: int, peer: str) -> None:
        self._chunks[chunk].flights.pop(peer, None)
        record = self._peers.get(peer)
        if record is not None:
            record.flights.discard(chunk)
