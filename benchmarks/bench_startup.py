"""How light it is: short commands as processes, beside Python itself, and a daemon without a model.

    python benchmarks/bench_startup.py [--home DIR] [--artifacts 20000] [--runs 30]

`status` and `ls` ask a node with a large store, made as `bench_loop.py` makes its own but without chunk files; with
`--home` it is kept and used again.  All commands take turns, so that what else the machine does meets them alike; the
best of all runs and the median are shown, of wall time and of the process's own CPU time, and the node's beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import table  # noqa: E402


def timed(*arguments: str) -> tuple[float, float]:
    """Run Python with these arguments; seconds from start to exit, and CPU-seconds."""
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=nowhere)
    _, status, used = os.wait4(process, 0)
    wall = time.perf_counter() - began
    assert status == 0, arguments
    return wall, used.ru_utime + used.ru_stime


def main() -> None:
    import psutil

    from tests.store.large import fill
    from tests.support import Daemon

    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--home", type=Path, help="keep the large home here, and use the one that is here")
    given.add_argument("--artifacts", type=int, default=20_000)
    given.add_argument("--runs", type=int, default=30)
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary) / "large"
        if not (home / "store").exists():
            fill(home, options.artifacts, files=False)
        bare = {"KVSWAP_MODELS": str(Path(temporary) / "none")}
        starts = []
        for place in [*(Path(temporary) / f"empty{number}" for number in range(5)), home]:
            node = Daemon(place, env=bare, cold=True)
            began = time.perf_counter()
            node.start()
            ready = time.perf_counter() - began
            assert node.process is not None
            there = psutil.Process(node.process.pid)
            starts.append((ready, sum(there.cpu_times()[:2])))
            if place != home:
                rss = there.memory_info().rss
                node.stop()
        commands = {
            "`python -c pass`": ("-c", "pass"),
            "`import click`": ("-c", "import click"),
            "`kvswap --help`": ("-m", "kvswap", "--help"),
            "`import kvswap; kvswap.Client`": ("-c", "import kvswap; kvswap.Client"),
            "`kvswap status`": ("-m", "kvswap", "status", "--home", str(home)),
            "`kvswap ls`": ("-m", "kvswap", "ls", "--home", str(home)),
        }
        rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
        try:
            for _ in range(options.runs):
                for name, arguments in commands.items():
                    before = sum(there.cpu_times()[:2])
                    wall, cpu = timed(*arguments)
                    rows[name].append((wall, cpu, sum(there.cpu_times()[:2]) - before))
        finally:
            node.stop()
    out = []
    for name, samples in rows.items():
        best, median = map(min, zip(*samples, strict=True)), map(statistics.median, zip(*samples, strict=True))
        out.append([name, *(f"{b:.3f} / {m:.3f} s" for b, m in zip(best, median, strict=True))])
    print(
        f"best / median of {options.runs} runs; {options.artifacts} artifacts; {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    table(["", "start to exit", "its CPU", "the node's CPU"], out)
    *empty, large = starts
    print(
        f"\ndaemon, empty home, until ready: {min(s for s, _ in empty):.2f} s, {min(c for _, c in empty):.2f} CPU-s; "
        f"large home: {large[0]:.2f} s, {large[1]:.2f} CPU-s; resident without a model: {rss / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
