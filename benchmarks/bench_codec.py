"""Codec ratio and speed on real KV of the default model, per dtype, per core and on two cores.

Side by side in one run: memcpy, raw, zstd 1 and 3 on the raw bytes, planes.  Chunks as they are stored:
one block of 256 tokens, layers up to the target size.  Speeds are raw bytes a second.

    python benchmarks/bench_codec.py
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import zstandard  # noqa: E402

from benchmarks.common import BLOCK, ids_of, load_default, machine, table  # noqa: E402


def chunks_of(loaded: object, ids: list[int]) -> list[list[np.ndarray]]:
    from kvswap.model.cache import new_cache
    from tests.support import captured

    cache = new_cache(loaded.model.config, len(ids))
    return [parts for _, _, parts, _, _ in captured(loaded, cache, ids, BLOCK)]


def rate(work: object, items: list, raw: int, threads: int) -> float:
    """Bytes a second over all items; best of three passes, so that a noisy neighbour counts least."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items[:threads]))
        times = []
        for _ in range(5):
            began = time.perf_counter()
            list(pool.map(work, items))
            times.append(time.perf_counter() - began)
    return raw / statistics.median(times) / 1e9


def main() -> None:
    from kvswap import codec

    print(f"{machine()}\n")
    rows = []
    for dtype in ("bfloat16", "float16", "float32"):
        loaded = load_default(dtype)
        chunks = chunks_of(loaded, ids_of(loaded, 6 * BLOCK if dtype != "float32" else 3 * BLOCK))
        raws = [b"".join(p.tobytes() for p in parts) for parts in chunks]
        total = sum(map(len, raws))

        def add(
            name: str, encode: object, decode: object, inputs: list, total: int = total, dtype: str = dtype
        ) -> None:
            wires = [encode(item) for item in inputs]
            coded = sum(len(w) for w in wires)
            pairs = list(zip(wires, range(len(wires)), strict=True))
            rows.append(
                [dtype, name, f"{total / coded:.3f}"]
                + [f"{rate(encode, inputs, total, n):.2f}" for n in (1, 2)]
                + [f"{rate(decode, pairs, total, n):.2f}" for n in (1, 2)]
            )

        add("memcpy", lambda b: bytes(bytearray(b)), lambda p: bytes(bytearray(p[0])), raws)
        for level in (1, 3):
            add(
                f"zstd {level}",
                lambda b, level=level: zstandard.ZstdCompressor(level=level).compress(b),
                lambda p: zstandard.ZstdDecompressor().decompress(p[0]),
                raws,
            )
        outs = [[np.empty_like(p) for p in parts] for parts in chunks]
        for name in ("raw", "planes"):
            add(
                name,
                lambda parts, name=name, dtype=dtype: codec.encode(parts, dtype, name)[1],
                lambda p, name=name, dtype=dtype, outs=outs: codec.decode(name, p[0], outs[p[1]], dtype),
                chunks,
            )
        exact = all(
            np.array_equal(a, b)
            for parts, out in zip(chunks, outs, strict=True)
            for a, b in zip(parts, out, strict=True)
        )
        assert exact, "planes did not return every bit"
    table(["dtype", "codec", "ratio", "encode GB/s, 1 thread", "2 threads", "decode GB/s, 1 thread", "2 threads"], rows)
    print("\nplanes returned every bit of every chunk: yes")


if __name__ == "__main__":
    main()
