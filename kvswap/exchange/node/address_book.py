"""Referrals: which peer may have what, and where, as peers say of others and of themselves.

None of it is checked before the peer is asked.  So it is bounded by who told it, what once delivered is kept, and what
led nowhere is forgotten.  Where a peer was not, it is looked for again after ever longer pauses, unless it shows
meanwhile that it is back.  That an address leads nowhere is held against the address, and against that peer at that
address: never against the peer, who may be elsewhere and know nothing of what is said of it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from kvswap.core.bounded import Table
from kvswap.core.limits import LIMITS, MIB
from kvswap.core.rows import RowBounds, Rows
from kvswap.net import PeerAddress, messages
from kvswap.net.dialling import JUDGED

_ENTRIES = 4_096
_OF_ONE_SENDER = 1_024
_IN_ONE_ROW = 4  # places of one sender among those who may have the same thing
_PAUSE_SECONDS = 2.0  # after the first failure; doubled with each more
_SHOWN_SECONDS = 10.0  # an announcement ends a pause once in so long: saying so costs nothing
_AT_ONE_ADDRESS = 3  # that are said to be there; who named as many in vain, and where as many did, waits for a while
RECORDS = "the DHT"  # the sender of provider records, as far as we know: one for all of them


@dataclass(frozen=True, slots=True)
class Referral:
    """A peer that may have something, and who said so: the peer itself, or another."""

    address: PeerAddress
    sender: str


@dataclass(frozen=True, slots=True)
class _Pause:
    failures: int
    at: float  # of the last one; monotonic, as `until`
    until: float


@dataclass(frozen=True, slots=True)
class _Shown:
    """The moment when a peer showed that it is there (monotonic seconds), and how."""

    at: float
    met: bool  # by a connection


class AddressBook:
    """The referrals by reference, and the addresses that led nowhere."""

    def __init__(self, delivered: Callable[[str], bool], clock: Callable[[], float] = time.monotonic) -> None:
        """`delivered(peer)`: whether a peer gave what it was asked for, ever: what is said of it is kept."""
        self._delivered = delivered
        self._clock = clock
        self.referrals: Rows[Referral] = Rows(
            "referrals",
            RowBounds(
                entries=_ENTRIES,
                per_row=LIMITS.find_results,
                per_sender_in_row=_IN_ONE_ROW,
                nbytes=8 * MIB,
                per_sender=_OF_ONE_SENDER,
                bytes_per_sender=2 * MIB,
            ),
            keep=lambda key, referral: delivered(key[1]),
        )
        self.pauses: Table[tuple[str, str], _Pause] = Table("addresses that led nowhere", entries=_ENTRIES)
        self.shown: Table[str, _Shown] = Table(
            "peers that came back", entries=_ENTRIES, keep=lambda peer, shown: delivered(peer)
        )

    def refer(self, reference: str, provider: messages.Provider, sender: str) -> bool:
        """Remember that a peer may have what `reference` names; False where there is no place for it.

        Its addresses are those that may be dialled on the word of whoever told them (`net.dialling`).  A few may be
        said to be at one address.  One more takes the place of one that its own sender named there, else of one by
        whoever named most: never of who delivered, or announced itself on its own connection.
        """
        address = PeerAddress(provider.peer, tuple(provider.addresses[:8]), JUDGED)
        row = self.referrals.row(reference)
        known = row.get(provider.peer)
        if known is not None and known.sender == provider.peer:
            sender = provider.peer  # it came by itself once: its place is nobody else's
        gone: set[str] = set()
        for place in {_place(a) for a in address.addresses}:
            at_it = [p for p, r in row.items() if p not in gone | {provider.peer} and place in _places(r.address)]
            if len(at_it) < _AT_ONE_ADDRESS:
                continue
            if (victim := self._least_worth(row, at_it, sender)) is None:
                return self.referrals.table.refuse()
            gone.add(victim)
        for peer in gone:
            self.referrals.pop(reference, peer)
        return self.referrals.put(reference, provider.peer, Referral(address, sender), sender)

    def _least_worth(self, row: dict[str, Referral], peers: list[str], sender: str) -> str | None:
        """Name who gives way of those that are said to be at one address."""
        senders = Counter(row[peer].sender for peer in peers)
        loose = [peer for peer in peers if row[peer].sender != peer and not self._delivered(peer)]
        worth = {peer: (row[peer].sender != sender, -senders[row[peer].sender]) for peer in loose}
        return min(loose, key=lambda peer: worth[peer], default=None)

    def known(self, reference: str) -> list[Referral]:
        """Return the referrals for a reference: the peers that may have it."""
        return list(self.referrals.row(reference).values())

    def forget(self, reference: str, peer: str) -> None:
        """Drop a referral that led nowhere, unless the peer delivered before."""
        if not self._delivered(peer):
            self.referrals.pop(reference, peer)

    # -- addresses ---------------------------------------------------------------------------------

    def reachable(self, address: PeerAddress, sender: str = "") -> PeerAddress | None:
        """Return a peer with those of its addresses that are worth trying now; None without one.

        `sender`: on whose word.  The peer's own, on its own connection, stands whatever others say of its addresses.
        """
        if not address.addresses:
            return None if self._paused(address.peer, "") else address
        sure = sender == address.peer or self._delivered(address.peer)
        worth = tuple(a for a in address.addresses if not self._in_backoff(address.peer, _place(a), sender, sure))
        return replace(address, addresses=worth) if worth else None

    def unreached(self, address: PeerAddress, sender: str = "") -> bool:
        """Note that a peer was at none of these addresses, where `sender` said it was; True if that is new."""
        places = _places(address) or {""}
        fresh = {place for place in places if self._fail(address.peer, place) == 1}
        for place in fresh - {""}:  # each peer counts once among those that were not there, and each sender among all
            if self._fail(_by(sender), place) == 1 and sender != RECORDS:
                self._fail("", place)
        return fresh == places

    def reached(self, address: PeerAddress, sender: str = "") -> None:
        """Note that a peer was found: nothing is held any more against its addresses, nor against the sender."""
        for place in {"", *_places(address)}:
            for whose in (address.peer, "", _by(sender)):
                self.pauses.pop((whose, place))

    def met(self, peer: str) -> None:
        """Note that a peer is connected: earlier failures to reach it no longer count."""
        self.shown.put(peer, _Shown(self._clock(), True))

    def announced(self, peer: str) -> None:
        """Note that a peer announced itself: it is looked for at once."""
        known, now = self.shown.peek(peer), self._clock()
        if known is None or known.at <= now - _SHOWN_SECONDS:
            self.shown.put(peer, _Shown(now, False))

    def _in_backoff(self, peer: str, place: str, sender: str, sure: bool) -> bool:
        """Return True if a peer is not looked for at a place for now.

        What one sender named there in vain is held against its word alone, and that of several against everybody's:
        but not against provider records, which go by their own, as anybody can have a few names told.
        """
        if self._paused(peer, place):
            return True
        words = [_by(sender)] if sender == RECORDS else [_by(sender), ""]
        return not sure and any(self._vacant(word, place) for word in words)

    def _vacant(self, word: str, place: str) -> bool:
        pause = self.pauses.peek((word, place))
        return pause is not None and pause.failures >= _AT_ONE_ADDRESS and self._paused(word, place)

    def _paused(self, peer: str, place: str) -> bool:
        pause, shown = self.pauses.get((peer, place)), self.shown.peek(peer)
        return pause is not None and pause.until > self._clock() and (shown is None or shown.at < pause.at)

    def _fail(self, peer: str, place: str) -> int:
        """Begin a pause, and return how many failures in a row there were."""
        known, shown, now = self.pauses.peek((peer, place)), self.shown.peek(peer), self._clock()
        anew = known is None or (shown is not None and shown.met and shown.at >= known.at)
        failures = 1 if anew or known is None else known.failures + 1
        seconds = min(LIMITS.backoff_seconds, _PAUSE_SECONDS * 2.0 ** min(16, failures - 1))
        self.pauses.put((peer, place), _Pause(failures, now, now + seconds))
        return failures


def _by(sender: str) -> str:
    """Return the name under which a sender's failures at a place are kept: no peer has such a name."""
    return f"by {sender}"


def _places(address: PeerAddress) -> set[str]:
    return {_place(a) for a in address.addresses}


def _place(address: str) -> str:
    """Return an address without the peer that is said to be there."""
    before, found, last = address.rpartition("/p2p/")
    return before if found and "/" not in last else address
