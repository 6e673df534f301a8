"""The store at size: what each operation costs with a thousand, ten thousand and fifty thousand chunks.

    python benchmarks/bench_store.py [COUNT …]

Chunks are 4 KiB here: it is the index and the directories that are measured, not the disk's rate.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import machine, table
from kvswap.core.ids import Cid
from kvswap.store import ArtifactRow, Store

PER_ARTIFACT = 100


def row(number: int) -> ArtifactRow:
    name = str(Cid.of(b"artifact %d" % number))
    now = time.time()
    return ArtifactRow(
        name, "sha256:" + name, b"m" * 32, "m", "bfloat16", 1000, 1, 1, "p", int(now) + 10**6, now, now, False, False
    )


def fill(store: Store, first: int, count: int) -> list[list[Cid]]:
    """Artifacts of 100 chunks, with 50 chain digests each."""
    out = []
    for number in range(first, first + count):
        cids = [store.put_chunk(os.urandom(4096)) for _ in range(PER_ARTIFACT)]
        store.put_artifact(row(number), b"e" * 5000, cids, [], [os.urandom(32) for _ in range(50)])
        out.append(cids)
    return out


def micro(function: Callable[[], object], repeat: int = 200) -> str:
    """Median in microseconds."""
    samples = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        samples.append(time.perf_counter() - began)
    return f"{statistics.median(samples) * 1e6:.0f}"


def main() -> None:
    counts = [int(a) for a in sys.argv[1:]] or [1_000, 10_000, 50_000]
    print(machine() + "\n")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        store = Store.open(Path(scratch), 10**12)
        artifacts: list[list[Cid]] = []
        for count in counts:
            artifacts += fill(store, len(artifacts), count // PER_ARTIFACT - len(artifacts))
            some = artifacts[len(artifacts) // 2]
            chain = [os.urandom(32) for _ in range(500)]
            began = time.perf_counter()
            fill(store, 10**6, 1)
            stored = time.perf_counter() - began
            began = time.perf_counter()
            store.remove(row(10**6).id)
            store.collect()
            evicted = time.perf_counter() - began
            rows.append(
                [
                    count,
                    f"{stored / PER_ARTIFACT * 1e6:.0f}",
                    micro(lambda some=some: store.get_chunk(some[0])),
                    micro(lambda some=some: store.missing(some)),
                    micro(lambda chain=chain: store.longest_prefix(chain), 50),
                    f"{evicted * 1e3:.0f}",
                ]
            )
        began = time.perf_counter()
        freed = store.collect(0)
        took = time.perf_counter() - began
        store.close()
    table(["chunks", "put, us", "get, us", "missing of 100, us", "longest prefix of 500, us", "remove 100, ms"], rows)
    print(f"\ncollecting all {counts[-1]} chunks ({freed / 1e6:.0f} MB): {took:.1f} s")


if __name__ == "__main__":
    main()
