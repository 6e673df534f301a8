"""A fetch of 20 MB from a peer that was connected before, beside unknown peers that attack the node that fetches.

    python benchmarks/bench_attacks.py [KIND …]        every kind, and then "all together"

The victim and the honest peer are daemons; the attackers (`tests/swarm/attackers.py`) are one process, held to one
core.  Medians of three fetches of the whole document, each into an empty store; the memory is the most that the
victim's process had meanwhile.  Written to `docs/results/attacks.md` when everything was measured.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, machine, text_table
from kvswap.core.errors import KvswapError
from tests.swarm.attackers import KINDS
from tests.swarm.siege import Siege, artifact

ROUNDS = 3
SETTLE_SECONDS = 2.0
ALL = "all together"
TIMES, SECONDS, RSS = 3.0, 3.0, 400e6  # what is promised


@dataclass
class Figure:
    """What one kind of attack did to three fetches, and to the victim's memory."""

    kind: str
    seconds: list[float]
    failed: list[str]
    peak: int
    did: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else float("inf")

    def holds(self, alone: float) -> bool:
        return not self.failed and self.median <= max(TIMES * alone, SECONDS) and self.peak < RSS


def fetches(siege: Siege) -> tuple[list[float], list[str]]:
    seconds, failed = [], []
    for _ in range(ROUNDS):
        try:
            got = siege.fetch()
        except KvswapError as error:
            failed.append(f"exit {error.exit_code}: {error.message[:200]}")
        else:
            seconds.append(got.seconds)
    return seconds, failed


def measure(siege: Siege, name: str, kinds: list[str]) -> Figure:
    siege.forget_peak()
    if not kinds:
        return Figure(name, *fetches(siege), siege.peak_rss(), 0)
    with siege.attacked(*kinds) as attackers:
        time.sleep(SETTLE_SECONDS)
        seconds, failed = fetches(siege)
        peak = siege.peak_rss()
    return Figure(name, seconds, failed, peak, sum(attackers.did.get(kind, 0) for kind in kinds))


def main(wanted: list[str]) -> None:
    kinds = wanted or [*KINDS, ALL]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as directory:
        for kind in ["", *kinds]:
            siege = Siege.begin(Path(tempfile.mkdtemp(dir=directory)), MADE)
            try:
                each = list(KINDS) if kind == ALL else [kind] if kind else []
                figures.append(figure := measure(siege, kind or "alone", each))
            finally:
                siege.end()
            print(figure, flush=True)
    alone = figures[0].median
    rows = [
        [
            f.kind,
            f"{f.median:.2f}",
            " ".join(f"{s:.2f}" for s in f.seconds),
            f"{f.median / alone:.1f}",
            f"{f.peak / 1e6:.0f}",
            f"{f.did:,}" if f.did else "",
            "; ".join(f.failed) or ("holds" if f.holds(alone) else "does not hold"),
        ]
        for f in figures
    ]
    text = text_table(["beside", "s", "each", "of alone", "peak RSS, MB", "done by the attackers", ""], rows)
    print("\n" + text)
    if not wanted:
        page = __doc__.split("\n\n")
        (ROOT / "docs" / "results" / "attacks.md").write_text(
            f"# Fetching beside attacks\n\n{page[0]}\n\n`python benchmarks/bench_attacks.py`, {machine()}:\n\n{text}\n\n"
            f"Promised: at most {TIMES:g} times as long as alone or {SECONDS:g} s, less than {RSS / 1e6:.0f} MB, "
            f"and no fetch that fails.\n\n{page[2]}\n"
        )


if __name__ == "__main__":
    MADE = artifact()
    main(sys.argv[1:])
