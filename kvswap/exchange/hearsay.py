"""Who may have what, and where: what peers say of others, and of themselves.

None of it is checked before somebody is asked.  So it is bounded by who told it, what once delivered is kept, and what
led nowhere is forgotten.  Where a peer was not, it is looked for again after ever longer pauses, unless it shows
meanwhile that it is back.  That an address leads nowhere is held against the address, and against that peer at that
address: never against the peer, who may be elsewhere and know nothing of what is said of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from kvswap.core.bounded import Table
from kvswap.core.limits import LIMITS, MIB
from kvswap.core.rows import Rows
from kvswap.net import PeerAddress, messages
from kvswap.net.dialling import JUDGED

_ENTRIES = 4_096
_OF_ONE_TELLER = 1_024
_IN_ONE_ROW = 4  # places of one teller among those who may have the same thing
_PAUSE_SECONDS = 2.0  # after the first failure; doubled with each more
_SHOWN_SECONDS = 10.0  # an announcement ends a pause once in so long: saying so costs nothing
_AT_ONE_ADDRESS = 3  # peers that are said to be there; and words on which one that was not was looked for: then
# nobody is, for a while
RECORDS = "the DHT"  # the teller of provider records, as far as we know: one for all of them


@dataclass(frozen=True, slots=True)
class Referral:
    """A peer that may have something, and who said so: itself, or another."""

    address: PeerAddress
    teller: str


@dataclass(frozen=True, slots=True)
class _Pause:
    failures: int
    at: float  # of the last one; monotonic, as `until`
    until: float


@dataclass(frozen=True, slots=True)
class _Shown:
    """Holds when a peer showed that it is there (monotonic seconds), and how."""

    at: float
    met: bool  # by a connection


class Hearsay:
    """Referrals by reference, and addresses that led nowhere."""

    def __init__(self, delivered: Callable[[str], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`delivered(peer)`: whether a peer gave what it was asked for, ever: what is said of it is kept."""
        self._delivered = delivered
        self._clock = clock
        self.referrals: Rows[Referral] = Rows(
            "referrals",
            entries=_ENTRIES,
            per_row=LIMITS.find_results,
            per_teller_in_row=_IN_ONE_ROW,
            nbytes=8 * MIB,
            per_teller=_OF_ONE_TELLER,
            bytes_per_teller=2 * MIB,
            keep=lambda key, referral: delivered(key[1]),
        )
        self.pauses: Table[tuple[str, str], _Pause] = Table("addresses that led nowhere", entries=_ENTRIES)
        self.shown: Table[str, _Shown] = Table(
            "peers that came back", entries=_ENTRIES, keep=lambda peer, shown: delivered(peer)
        )

    def refer(self, reference: str, provider: messages.Provider, teller: str) -> bool:
        """Remember that a peer may have this; False where there is no place for it.

        Its addresses are those that may be dialled on the word of whoever told them (`net.dialling`).
        A teller has one place for each address, and a few tellers may differ on who is there.
        """
        address = PeerAddress(provider.peer, tuple(provider.addresses[:8]), JUDGED)
        row = self.referrals.row(reference)
        known = row.get(provider.peer)
        if known is not None and known.teller == provider.peer:
            teller = provider.peer  # it came by itself once: its place is nobody else's
        there = {_place(a) for a in address.addresses}
        at_it = [p for p, r in row.items() if p != provider.peer and there & {_place(a) for a in r.address.addresses}]
        same = [peer for peer in at_it if row[peer].teller == teller]
        if (same and teller != provider.peer) or len(at_it) >= _AT_ONE_ADDRESS:
            return self.referrals.table.refuse()
        return self.referrals.put(reference, provider.peer, Referral(address, teller), teller)

    def known(self, reference: str) -> list[Referral]:
        """Return who may have this."""
        return list(self.referrals.row(reference).values())

    def forget(self, reference: str, peer: str) -> None:
        """Drop a referral that led nowhere, unless the peer delivered before."""
        if not self._delivered(peer):
            self.referrals.pop(reference, peer)

    # -- addresses ---------------------------------------------------------------------------------

    def reachable(self, address: PeerAddress, *, sure: bool = False) -> PeerAddress | None:
        """Return a peer with those of its addresses that are worth trying now; None without one.

        `sure`: it said so itself, on its own connection: what others say of these addresses counts for nothing.
        """
        if not address.addresses:
            return None if self._paused(address.peer, "") else address
        sure = sure or self._delivered(address.peer)
        worth = tuple(a for a in address.addresses if not self._resting(address.peer, _place(a), sure))
        return replace(address, addresses=worth) if worth else None

    def unreached(self, address: PeerAddress) -> bool:
        """Note that a peer was at none of these addresses; whether that is new."""
        places = {_place(a) for a in address.addresses} or {""}
        fresh = {place for place in places if self._fail(address.peer, place) == 1}
        for place in fresh - {""}:  # each peer counts once among those that were not there
            self._fail("", place)
        return fresh == places

    def reached(self, address: PeerAddress) -> None:
        """Note that a peer was found: nothing is held against its addresses."""
        for place in {"", *(_place(a) for a in address.addresses)}:
            self.pauses.pop((address.peer, place))
            self.pauses.pop(("", place))

    def met(self, peer: str) -> None:
        """Note that a peer is connected: that it was not there counts no more."""
        self.shown.put(peer, _Shown(self._clock(), True))

    def announced(self, peer: str) -> None:
        """Note that a peer says itself that it is there: it is looked for at once."""
        known, now = self.shown.peek(peer), self._clock()
        if known is None or known.at <= now - _SHOWN_SECONDS:
            self.shown.put(peer, _Shown(now, False))

    def _resting(self, peer: str, place: str, sure: bool) -> bool:
        if self._paused(peer, place):
            return True
        anybody = self.pauses.peek(("", place))
        nobody_there = anybody is not None and anybody.failures >= _AT_ONE_ADDRESS
        return nobody_there and not sure and self._paused("", place)

    def _paused(self, peer: str, place: str) -> bool:
        pause, shown = self.pauses.get((peer, place)), self.shown.peek(peer)
        return pause is not None and pause.until > self._clock() and (shown is None or shown.at < pause.at)

    def _fail(self, peer: str, place: str) -> int:
        """Pause, and return how often in a row it was like this."""
        known, shown, now = self.pauses.peek((peer, place)), self.shown.peek(peer), self._clock()
        anew = known is None or (shown is not None and shown.met and shown.at >= known.at)
        failures = 1 if anew or known is None else known.failures + 1
        seconds = min(LIMITS.backoff_seconds, _PAUSE_SECONDS * 2.0 ** min(16, failures - 1))
        self.pauses.put((peer, place), _Pause(failures, now, now + seconds))
        return failures


def _place(address: str) -> str:
    """Return an address without the peer that is said to be there."""
    before, found, last = address.rpartition("/p2p/")
    return before if found and "/" not in last else address
