"""Benchmarks of two checkouts, in turns: what did a change cost?

    python benchmarks/before_after.py OLD NEW [ROUNDS] [SCRIPT ARGS...]

OLD and NEW are checkouts, each with a `.venv` that imports kvswap from it.  Without SCRIPT: bench_startup, bench_load
--quick, bench_publish, and bench_bulk of 128 MiB.  Every number of every table that they print is compared by its
median over the rounds (5); a row tells the spread of both sides, because a difference within it is none.  The last row
of each table is the CPU-seconds of the whole script with all its processes, which say more than seconds where the
machine has other work.
"""

from __future__ import annotations

import re
import resource
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import table  # noqa: E402

DEFAULT = (
    ("bench_startup.py",),
    ("bench_load.py", "--quick"),
    ("bench_publish.py", "945"),
    ("bench_bulk.py", "128", "3"),
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
Cells = dict[tuple[str, str], float]


def cells(printed: str) -> Cells:
    """The first number of every cell of every Markdown table, by (first cell of the row, heading of the column)."""
    out: Cells = {}
    headings: list[str] = []
    for line in printed.splitlines():
        if not line.startswith("| "):
            headings = [] if not line.startswith("|") else headings
            continue
        row = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not headings:
            headings = row
            continue
        for heading, cell in zip(headings[1:], row[1:], strict=False):
            if number := NUMBER.match(cell):
                out[row[0], heading] = float(number[0])
    return out


def run(checkout: Path, script: tuple[str, ...]) -> Cells:
    """One run of a script of a checkout, by the Python of its environment."""
    command = [str(checkout / ".venv/bin/python"), f"benchmarks/{script[0]}", *script[1:]]
    before = _spent()
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} in {checkout} failed:\n{done.stderr[-2000:]}")
    return cells(done.stdout) | {("the whole script", "CPU-s"): round(_spent() - before, 2)}


def _spent() -> float:
    """Return the CPU-seconds of all processes that were started from here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    old, new = (Path(argument).resolve() for argument in sys.argv[1:3])
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    scripts = (tuple(sys.argv[4:]),) if len(sys.argv) > 4 else DEFAULT
    for script in scripts:
        seen: dict[Path, dict[tuple[str, str], list[float]]] = {old: defaultdict(list), new: defaultdict(list)}
        for number in range(rounds):
            for checkout in (old, new) if number % 2 == 0 else (new, old):
                for cell, value in run(checkout, script).items():
                    seen[checkout][cell].append(value)
        rows = []
        for cell in seen[old].keys() & seen[new].keys():
            before, after = (statistics.median(seen[side][cell]) for side in (old, new))
            ratio = f"{after / before:.3f}" if before else "-"
            spread = [f"{min(s):g} to {max(s):g}" for s in (seen[old][cell], seen[new][cell])]
            rows.append([*cell, f"{before:g}", f"{after:g}", ratio, *spread])
        print(f"\n{' '.join(script)}, {rounds} rounds\n")
        table(["row", "column", "before", "after", "after / before", "spread before", "spread after"], sorted(rows))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
