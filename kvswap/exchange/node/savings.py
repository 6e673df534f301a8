"""What using published caches saved on this machine, over all runs of its daemon: measured and estimated, kept apart.

A cache counts when it is used: for an answer, or by an engine or a program that asked for a prefix.  How long it took
to have it was measured.  How long prefilling would have taken is an estimate, by the prefill curve that was measured
here; where there is none, the use is counted without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec

from kvswap.core.atomic import write_atomic
from kvswap.core.errors import KvswapError
from kvswap.core.failures import as_kvswap_error
from kvswap.core.files import exists, read_file
from kvswap.core.upkeep import Problems
from kvswap.cost import Option

_PART = "savings"  # in `kvswap status`, under `degraded`
_BYTES = 4096


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """The totals of one home since `since` (Unix seconds)."""

    since: float = 0.0
    uses: int = 0
    """Caches that were used instead of a prefill."""
    tokens: int = 0
    """Their tokens, which were not prefilled."""
    bytes: int = 0
    """Bytes that were fetched for them."""
    spent_seconds: float = 0.0
    """Measured: seconds until these caches were ready."""
    compared: int = 0
    """The uses for which prefilling could be estimated; the next three are about these alone."""
    compared_seconds: float = 0.0
    """Measured: the part of `spent_seconds` that these took."""
    prefill_seconds: float = 0.0
    """Estimated: seconds that prefilling would have taken."""
    dollars: float = 0.0
    """Estimated: what prefilling costs at this machine's prices, less what was paid for fetching."""


class Savings:
    """The totals, kept in a file of the home.  `add` is for the event loop, `write` for a thread."""

    def __init__(self, path: Path, problems: Problems, now: Callable[[], float]) -> None:
        """Read the totals; where the file is damaged they begin anew, and `problems` says so until it is written."""
        self._path, self._problems = path, problems
        self.total = Saved(since=now())
        self._written = self.total
        if not exists(path):
            return
        try:
            self.total = self._written = _read(path)
        except (OSError, KvswapError, msgspec.MsgspecError, ValueError) as error:
            problems.note(_PART, f"what was saved until now cannot be read and begins anew: {error}")

    def add(self, *, tokens: int, nbytes: int, seconds: float, prefill: Option | None, paid: float) -> None:
        """Count a use: tokens and bytes fetched, measured seconds, the estimate of prefilling them, and dollars."""
        if tokens <= 0 or not math.isfinite(seconds):
            return
        old = self.total
        new = msgspec.structs.replace(
            old,
            uses=old.uses + 1,
            tokens=old.tokens + tokens,
            bytes=old.bytes + nbytes,
            spent_seconds=old.spent_seconds + seconds,
        )
        if prefill is not None and math.isfinite(prefill.seconds) and math.isfinite(prefill.dollars - paid):
            new = msgspec.structs.replace(
                new,
                compared=old.compared + 1,
                compared_seconds=old.compared_seconds + seconds,
                prefill_seconds=old.prefill_seconds + prefill.seconds,
                dollars=old.dollars + prefill.dollars - paid,
            )
        self.total = new

    def write(self) -> None:
        """Write the totals, if they changed.  Raises this machine's error; blocks."""
        total = self.total
        if total == self._written:
            return
        try:
            write_atomic(self._path, msgspec.json.encode(total), durable=False)
        except OSError as error:
            raise as_kvswap_error(error, "writing what was saved") from error
        self._written = total
        self._problems.clear_one(_PART)


def _read(path: Path) -> Saved:
    saved = msgspec.json.decode(read_file(path, _BYTES), type=Saved)
    figures = [getattr(saved, name) for name in Saved.__struct_fields__]
    if not all(math.isfinite(value) for value in figures):
        raise ValueError("a figure is not finite")
    return saved
