"""The codec `predictive` on real KV of the default model: trained on one corpus, measured on other documents.

    python benchmarks/bench_predictive.py [--corpus DIR] [--tokens 40000] [--before 2] [--documents FILE ...]

A corpus is a directory of text files, as for `kvswap codec train` (default: Python's standard library, which is
one kind of text only); documents are text files that are not in it, of which 2,048 tokens are measured.  Chunks are whole blocks of 256 tokens.  `planes` is measured in the same
run.  The predictor's size is printed beside and not part of the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402

from benchmarks.common import BLOCK, DOCUMENT, ROOT, load_default, machine, table  # noqa: E402

TOKENS = 2_048


def blocks_of(loaded: object, text: str) -> list[list[np.ndarray]]:
    """K, V of every layer, block by block."""
    from kvswap.model.cache import new_cache
    from tests.support import captured

    ids = loaded.tokenize(text)[:TOKENS]
    cache = new_cache(loaded.model.config, len(ids))
    out: dict[int, list[np.ndarray]] = {}
    for block, _, parts, _, _ in captured(loaded, cache, ids, BLOCK):
        out.setdefault(block, []).extend(p.copy() for p in parts)
    return list(out.values())


def rate(work: object, items: list, raw: int, threads: int) -> float:
    """MB/s over all items, median of three passes."""
    times = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, items))
        for _ in range(3):
            began = time.perf_counter()
            list(pool.map(work, items))
            times.append(time.perf_counter() - began)
    return raw / statistics.median(times) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=Path(json.__file__).parent.parent)
    parser.add_argument("--documents", type=Path, nargs="+", default=[DOCUMENT, ROOT / "docs" / "protocol.md"])
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--before", type=int, default=2)
    given = parser.parse_args()

    from kvswap import codec as codecs
    from kvswap.codec import predictive
    from kvswap.worker import training

    training.BEFORE = given.before
    loaded = load_default("bfloat16")
    print(machine())
    began = time.perf_counter()
    data, trained = training.make(loaded, given.corpus, given.tokens, BLOCK, lambda done: None, lambda: None)
    print(f"predictor: {len(data) / 1e6:.1f} MB, {trained} tokens, {time.perf_counter() - began:.0f} s of training\n")
    predictor = predictive.load(data)
    stack = predictor.stacks[0]

    rows, totals = [], {"raw": 0, "planes": 0, "predictive": 0}
    everything: list[tuple[list[np.ndarray], predictive.Context, bytes, bytes]] = []
    for path in given.documents:
        sizes = dict.fromkeys(totals, 0)
        for number, parts in enumerate(blocks_of(loaded, path.read_text(errors="ignore"))):
            context = predictive.Context(predictor, stack, 0, [], number * BLOCK)
            wire = predictive.encode(context, parts, "bfloat16")
            _, planes = codecs.encode(parts, "bfloat16", "planes")
            out = [np.empty_like(p) for p in parts]
            predictive.decode(context, wire, out, "bfloat16")
            assert all((a == b).all() for a, b in zip(out, parts, strict=True)), "not exact"
            everything.append((parts, context, wire, planes))
            for name, size in (("raw", codecs.raw_length(parts)), ("planes", len(planes)), ("predictive", len(wire))):
                sizes[name] += size
                totals[name] += size
        rows.append([path.name, *_ratios(sizes)])
    rows.append(["all", *_ratios(totals)])
    table(["document", "planes", "predictive", "bits a value"], rows)

    speed = []
    for threads in (1, 2):
        outs = [[np.empty_like(p) for p in parts] for parts, *_ in everything]
        numbered = list(range(len(everything)))

        def decode(i: int, outs: list = outs) -> None:
            predictive.decode(everything[i][1], everything[i][2], outs[i], "bfloat16")

        def encode(i: int) -> None:
            predictive.encode(everything[i][1], everything[i][0], "bfloat16")

        def planes_decode(i: int, outs: list = outs) -> None:
            codecs.decode("planes", everything[i][3], outs[i], "bfloat16")

        raw = totals["raw"]
        cells = [rate(w, numbered, raw, threads) for w in (encode, decode, planes_decode)]
        speed.append([threads, *(f"{c:.0f}" for c in cells)])
    print()
    table(["threads", "encode MB/s", "decode MB/s", "planes decode MB/s"], speed)


def _ratios(sizes: dict[str, int]) -> list[str]:
    raw = sizes["raw"]
    return [f"{raw / sizes['planes']:.3f}", f"{raw / sizes['predictive']:.3f}", f"{16 * sizes['predictive'] / raw:.2f}"]


if __name__ == "__main__":
    main()
