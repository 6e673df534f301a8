"""Coverage-guided fuzzing of every parser (libFuzzer by way of atheris).

    pip install atheris
    python tests/fuzz/fuzz.py TARGET [-runs=1000000] [-max_total_time=600] ...
    python tests/fuzz/fuzz.py --all RUNS          every target, that many executions each

Seeds come from the vectors and from what a node writes itself.  Not part of `make test`, which runs the same
targets with Hypothesis.  What was run, and found, is in docs/security.md.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MEMORY_BYTES = 4 << 30  # of address space: a parser that allocates without bound dies here


def every(runs: int) -> None:
    from tests.fuzz.targets import TARGETS

    total, failed = 0, []
    for name in TARGETS:
        done = subprocess.run(
            [sys.executable, __file__, name, f"-runs={runs}", "-max_len=4096", "-timeout=10", "-print_final_stats=1"],
            capture_output=True,
            text=True,
        )
        counted = [line.split(":")[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        count = int(counted[0]) if counted else 0
        total += count
        print(f"{name:16} {count:>10,} executions, exit {done.returncode}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stderr[-3000:], flush=True)
    print(f"{total:,} executions in all; failed: {', '.join(failed) or 'none'}")
    sys.exit(bool(failed))


def main() -> None:
    if sys.argv[1:2] == ["--all"]:
        every(int(sys.argv[2]))
    import atheris

    with atheris.instrument_imports(include=["kvswap"]):
        from tests.fuzz.targets import CORPUS, TARGETS
    name = sys.argv.pop(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    with tempfile.TemporaryDirectory() as directory:
        for number, seed in enumerate(CORPUS[name]()):
            (Path(directory) / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, directory], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
