"""False alarms: honest artifacts of every kind of layer, checked by readers that compute in other ways.

    python benchmarks/bench_honest.py [--each 25] [--dtypes float32,bfloat16] [--write]

Tiny models with random weights, one of each kind.  Of each artifact the text, the length (around windows, blocks and
checkpoints), the places it can be resumed at, and the threads of publisher and reader differ.  Counted are outcomes
that are wrong or that only the reader's own cache excused; "nearest" is the largest score, in multiples of the most
that honest caches showed when the noise was measured: the alarm is at 2.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.common import machine, text_table
from kvswap.artifact.layout import fingerprint_rows
from kvswap.trust.agreement import compare
from kvswap.trust.intervals import OF_SAMPLES
from kvswap.trust.levels import Level
from kvswap.trust.noise import MARGIN, MICRO, Noise
from kvswap.worker.messages import VerifyJob
from tests.attacks.kinds import KINDS
from tests.worker.honest import BLOCK, WORDS, Shelf, window_of

RESULT = Path(__file__).parents[1] / "docs" / "results" / "false-alarms.md"
LEVELS = (Level.TOKENS, Level.SAMPLES, Level.AGREEMENT, Level.RECOMPUTE)


@dataclass
class Alarms:
    """What the checks of one kind said: artifacts, alarms and the nearest score of each level."""

    artifacts: int = 0
    skipped: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    alarms: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    nearest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    said: list[str] = field(default_factory=list)

    def add(self, level: str, verdict: str, score: float, why: str) -> None:
        """Count one outcome."""
        self.nearest[level] = max(self.nearest[level], score)
        if verdict == "failed" or "nobody is to blame" in why:
            self.alarms[level] += 1
            self.said.append(f"{level}: {why}")
        elif verdict == "skipped":
            self.skipped[level] += 1
            self.said.append(f"{level} skipped: {why}")


def texts(tokenizer: Any, family: str, each: int, seed: int) -> list[tuple[str, int, int]]:
    """(text, tokens, offset) of so many artifacts: lengths around blocks and windows, and any others."""
    rng = random.Random(f"{family} {seed}")
    window = window_of(family)
    around = [at + by for at in (BLOCK, 2 * BLOCK, 3 * BLOCK, window, 2 * window) for by in (-1, 0, 1)]
    out = []
    for number in range(each):
        tokens = around[number] if number < len(around) else rng.randrange(20, 400)
        start = rng.randrange(0, len(WORDS) - 8000)
        ids = tokenizer(WORDS[start : start + 6000])["input_ids"]
        text = tokenizer.decode(ids[:tokens], skip_special_tokens=True)
        out.append((text, len(tokenizer(text)["input_ids"]), start))
    return out


def measured(shelf: Shelf, family: str, each: int, seed: int = 0) -> Alarms:
    """Publish and check so many honest artifacts of one family."""
    rng = random.Random(seed)
    jobs = shelf.jobs(family)
    plain = shelf.noise(family)
    noise, found = Noise.of(plain), Alarms()
    for text, tokens, _ in texts(jobs.loaded.tokenizer, family, each, seed):
        threads = rng.choice((1, 1, 1, 2))
        checkpoints = sorted(rng.sample(range(1, tokens), min(tokens - 1, rng.choice((0, 1, 3)))))
        made = shelf.publish(shelf.jobs(family, threads=threads), text, checkpoints)
        reader = shelf.jobs(family, threads=rng.choice((1, 1, 1, 2)))
        report = reader.do(
            VerifyJob(
                envelope=made.envelope,
                chunks=str(shelf.chunks.directory),
                levels=[2, 3, 5, 6, 7],
                samples=OF_SAMPLES,
                seed=rng.randbytes(32),
                text=text if rng.random() < 0.8 else None,
                noise=plain,
            )
        )
        found.artifacts += 1
        for step in (check.result for check in report.steps):
            worst = (step.figures.worst or 0) / MICRO
            found.add(f"V{int(step.level)}", step.verdict, worst, step.why)
        if report.computed:
            rows = fingerprint_rows(made.manifest.layout.layers)
            computed = {"the reader": report.computed}
            worst = compare(report.fingerprint, computed, noise.fingerprints, rows).scores["the reader"]
            found.add("V6", "failed" if worst > MARGIN else "passed", worst, f"{worst:.1f} apart")
    return found


def main() -> None:
    """Measure every kind in every dtype, and print or write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--each", type=int, default=25, help="artifacts of each kind in each dtype")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    args = parser.parse_args()
    head = ["kind", "family", "dtype", "artifacts", "alarms", *(f"V{int(level)}" for level in LEVELS)]
    rows: list[list[str]] = []
    for kind in args.kinds.split(","):
        for dtype in args.dtypes.split(","):
            with tempfile.TemporaryDirectory() as directory:
                shelf = Shelf(Path(directory), {KINDS[kind]: dtype}, noise_tokens=1024)
                found = measured(shelf, KINDS[kind], args.each)
            alarms = str(sum(found.alarms.values()))
            row = [kind, KINDS[kind], dtype, str(found.artifacts), alarms]
            rows.append(row + [f"{found.nearest[f'V{int(level)}']:.2f}" for level in LEVELS])
            print(*rows[-1], *sorted(set(found.said)), sep=" | ", flush=True)
            if args.write:
                table = text_table(head, rows)
                RESULT.write_text(f"# False alarms\n\n{PREFACE}\n\n{table}\n\nMeasured on: {machine()}\n")


PREFACE = (__doc__ or "").split("\n\n", 2)[2].strip()

if __name__ == "__main__":
    main()
