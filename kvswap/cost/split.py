"""Computing from the front while fetching from the back, and the unit where the two meet.

A prefill can only begin at the first token, chunks can come in any order, so both go on at once and every part is made
by whichever gets to it first (Cake, arXiv 2410.03065).  The parts are `units`: a block, or a group of layers of a
block.  Where they meet is not fixed beforehand: before each unit is computed, `Split` says from what was measured so
far whether that still pays, or waiting for the link does.

    seconds(m) = max(compute of units before m + loading of the others, bytes from m on / rate + loading of the last)

and the best meeting is the m with the least of it.  Pure: the clock is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

_RATE_SECONDS = 1.5  # time constant of the mean rate
_GRACE_SECONDS = 1.0  # before the first byte: looking up, joining, the first round trips
_NEVER = 1 << 60  # bytes of a unit that is never fetched
_WORTH = 0.95  # computing must take less than this part of the seconds of waiting
_PACE_WEIGHT = 0.5  # weight of the newest unit in the pace of computing

NextStep = Literal["compute", "wait", "met", "stuck"]


@dataclass(frozen=True, slots=True)
class Work:
    """The costs of each unit, in the order of computing: seconds to compute, bytes left to fetch, seconds to load.

    `last`: seconds of loading the block that comes last, by itself: nothing overlaps with it.
    """

    compute: Sequence[float]
    wire: Sequence[int]
    load: Sequence[float]
    last: float = 0.0

    def __len__(self) -> int:
        return len(self.compute)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A split of the work: units before `at` are computed, the others fetched.

    `seconds`: until all are there; `bytes`: to fetch.
    """

    at: int
    seconds: float
    bytes: int


def meetings(
    work: Work,
    rate: float,
    *,
    front: int = 0,
    back: int | None = None,
    arriving: int = 0,
    pace: float = 1.0,
    start: float = 0.0,
) -> Iterable[Meeting]:
    """Yield the possible meetings in [front, back], first the one where all is fetched.

    `rate`: bytes per second; `arriving`: bytes received of units that are not whole yet; `pace`: seconds of computing
    for each second that `work` predicts; `start`: seconds before bytes come, in which computing goes on already.
    """
    back = len(work) if back is None else back
    wire = list(accumulate(work.wire[front:back], initial=0))
    load = list(accumulate(work.load[front:back], initial=0.0))
    computing = 0.0
    for at in range(front, back + 1):
        left = wire[-1] - wire[at - front]
        coming = max(0, left - arriving)
        fetching = (start + coming / rate if rate > 0 else math.inf) if coming else 0.0
        fetching += work.last if at < back else 0.0
        yield Meeting(at, max(computing + load[-1] - load[at - front], fetching), left)
        if at < back:
            computing += work.compute[at] * pace


class Split:
    """The work on one document while it goes on.

    `front`: the next unit to compute; `back`: every unit from there on is here.
    """

    def __init__(
        self,
        work: Work,
        rate: float,
        now: float,
        *,
        front: int = 0,
        computes: bool = True,
        eager: bool = True,
        lowest: int = 0,
    ) -> None:
        """Start at the time `now` (seconds of any clock).

        `rate`: expected bytes per second of the link; `computes`: whether computing is possible, and without `eager`
        only after the link ended; `lowest`: units before it are never fetched.
        """
        wire = [_NEVER if bytes_ and unit < lowest else bytes_ for unit, bytes_ in enumerate(work.wire)]
        self._work = Work(work.compute, wire, work.load, work.last)
        self._computes = computes
        self._eager = eager
        self._rate = rate
        self._began = self._last = now
        self._got = 0  # bytes, by the last report
        self._arriving = 0  # those of them that belong to units that are not whole
        self._pace = 1.0
        self._ended = False
        self.front = front
        self.back = len(work)
        self._meet()

    @property
    def rate(self) -> float:
        """The rate of the link in bytes per second, by the last report; 0 after it ended."""
        return 0.0 if self._ended else self._rate

    # -- what happened ---------------------------------------------------------------------------

    def arrived(self, unit: int) -> None:
        """Record that a unit is here, whole and checked."""
        self._work.wire[unit] = 0  # type: ignore[index]  # our own list
        self._meet()

    def _meet(self) -> None:
        while self.back > self.front and not self._work.wire[self.back - 1]:
            self.back -= 1

    def got(self, total: int, arriving: int, now: float) -> None:
        """Record the bytes received since the beginning, and how many of them belong to units that are not whole.

        To be called also when nothing came, so that the rate falls.
        """
        self._arriving = arriving
        elapsed = now - self._last
        if elapsed <= 0 or (not total and now - self._began < _GRACE_SECONDS):
            return
        weight = 1 - math.exp(-elapsed / _RATE_SECONDS)
        self._rate += weight * ((total - self._got) / elapsed - self._rate)
        self._got, self._last = total, now

    def ended(self) -> None:
        """Record that no peer sends any more."""
        self._ended = True

    def computed(self, seconds: float) -> None:
        """Record that the unit at the front was computed, in that many seconds."""
        expected = self._work.compute[self.front]
        if expected > 0:
            self._pace += _PACE_WEIGHT * (seconds / expected - self._pace)
        self.front += 1

    # -- what to do ------------------------------------------------------------------------------

    def step(self) -> NextStep:
        """Decide what the front does next: compute, wait, or end as the two have met.

        `stuck` means that nobody sends and nobody computes.
        """
        if self.front >= self.back:
            return "met"
        if not self._computes:
            return "stuck" if self._ended else "wait"
        if not self._eager and not self._ended:
            return "wait"
        return "compute" if self.meeting().at > self.front else "wait"

    def meeting(self) -> Meeting:
        """Find the best meeting from here on; computing has to gain something over waiting for all that is left."""
        options = iter(
            meetings(self._work, self.rate, front=self.front, back=self.back, arriving=self._arriving, pace=self._pace)
        )
        waiting = best = next(options)
        for option in options:
            if option.seconds > _WORTH * waiting.seconds:
                continue
            if option.seconds < best.seconds:
                best = option
            elif option.seconds > 2 * best.seconds:
                break  # from here on computing takes longer than fetching
        return best
