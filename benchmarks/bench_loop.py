"""How long the event loop of a node ever waits while a large store is used: 20,000 artifacts, 600,000 chunks.

python benchmarks/bench_loop.py [ARTIFACTS] [--home DIR]

Fills a home with signed manifests of real chunks (30 each, of eight bytes: their number is what costs), about 620,000
files, once: with `--home` it is kept and used again.  Then a second node fetches while the first is used in every way.
The pause is the watch's of `kvswap status`: what the machine itself held up is taken off.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import table  # noqa: E402


@dataclass(slots=True)
class Steps:
    """What was done, how long it took, and the longest pause of the loop since the start."""

    pauses: Callable[[], float]
    rows: list[list[str]] = field(default_factory=list)

    def do(self, name: str, work: Callable[[], object], times: int = 1) -> None:
        """Time a step, done so often, and note the longest pause up to now."""
        began = time.perf_counter()
        for _ in range(times):
            work()
        seconds = (time.perf_counter() - began) / times
        self.rows.append([name, f"{seconds:.3f} s", f"{1e3 * self.pauses():.0f} ms"])


def main() -> None:
    import psutil

    from tests.store.large import fill
    from tests.support import Daemon, until

    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("artifacts", type=int, nargs="?", default=20_000)
    given.add_argument("--home", type=Path, help="keep the large home here, and use the one that is here")
    options = given.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary) / "large"
        if not (home / "store").exists():
            fill(home, options.artifacts)
        bare = {"KVSWAP_MODELS": str(Path(temporary) / "none")}  # without a model everything may be fetched
        began = time.perf_counter()
        node = Daemon(home, env=bare).start()
        started = time.perf_counter() - began
        reader = Daemon(Path(temporary) / "reader", ["--bootstrap", node.address], env=bare)
        try:
            reader.start()
            client, other = node.client, reader.client
            other.trust_add(node.publisher)
            until(lambda: other.status().peers, what="a connection")
            steps = Steps(lambda: float(client.status().loop.longest_pause_seconds))
            steps.rows.append(["start until ready", f"{started:.3f} s", f"{1e3 * steps.pauses():.0f} ms"])
            steps.do("`kvswap status`", client.status, 5)
            own = [row for row in client.ls() if row.standing == "own"]
            ids = iter([row.artifact for row in own])
            others = next(row.publisher for row in client.ls() if row.standing != "own")
            steps.do("`kvswap ls`", client.artifacts)
            steps.do("`kvswap show`", lambda: client.show(own[0].artifact), 5)
            steps.do("a fetch by the second node", lambda: other.fetch(next(ids), force=True), 20)
            steps.do("`kvswap trust add`", lambda: client.trust_add(others))
            steps.do("`kvswap withdraw`", lambda: client.withdraw(next(ids), "a measurement"))
            steps.do("a fetch after it", lambda: other.fetch(next(ids), force=True), 5)
            steps.do("`kvswap rm`", lambda: client.rm(next(ids)))
            steps.do("`kvswap gc` of 1,000 bytes", lambda: client.gc(client.status().store_bytes - 1_000))
            steps.do("10 s of upkeep", lambda: time.sleep(10))
            steps.do("`kvswap trust rotate`", client.rotate)
            loop = client.status().loop
            assert node.process is not None
            rss = psutil.Process(node.process.pid).memory_info().rss
        finally:
            reader.stop()
            node.stop()
    table(["step", "time", "longest pause up to then"], steps.rows)
    print(
        f"\n{len(own)} own artifacts of {options.artifacts}; pauses over 100 ms: {loop['pauses']}, excused for the "
        f"machine: {loop['excused']}, queries on the loop: {loop['queries']}; resident {rss / 1e6:.0f} MB; "
        f"{os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
