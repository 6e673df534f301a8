"""The sections of `bench_codec.py`; each prints a Markdown table."""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from benchmarks.codec import anchors, bits
from benchmarks.codec.samples import TOKENS, Block, blocks_of, documents
from benchmarks.common import BLOCK_TOKENS, ids_of, load_default, table

NAMES = ("texts", "layers", "speeds", "contexts", "dtypes", "sizes")
_PASSES = 3


def _model(given: argparse.Namespace, dtype: str = "bfloat16") -> Any:
    if given.model is None:
        return load_default(dtype)
    from kvswap.model.load import load_model

    return load_model(given.model, given.model.name, dtype)


def _predictor(given: argparse.Namespace, loaded: Any, quiet: bool = False) -> Any:
    from kvswap.codec import predictive
    from kvswap.exchange.node.predictors import SHIPPED

    path = given.predictor or SHIPPED / loaded.identity.digest.hex()
    if not path.is_file():
        print("no predictor for this model: `predictive` falls back to `planes`\n")
        return None
    if not quiet:
        print(f"predictor: {path.stat().st_size / 1e6:.1f} MB\n")
    return predictive.load(path.read_bytes())


def _older(given: argparse.Namespace) -> Any:
    from kvswap.codec import predictive

    return predictive.load(given.older.read_bytes()) if given.older else None


def _rate(work: Any, items: list[Any], raw: int, threads: int) -> float:
    """GB/s over all items."""
    times = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(_PASSES):
            began = time.perf_counter()
            list(pool.map(work, items))
            times.append(time.perf_counter() - began)
    return raw / statistics.median(times) / 1e9


def _measure(blocks: list[Block], dtype: str, label: list[Any], speeds: bool = True) -> list[list[Any]]:
    rows = []
    raw = sum(len(b.raw) for b in blocks)
    for anchor in [*anchors.others(dtype), *anchors.ours(dtype)]:
        wires = [anchor.encode(b) for b in blocks]
        back = [anchors.joined(anchor.decode(w, b)) for w, b in zip(wires, blocks, strict=True)]
        same = all(blake3(x).digest() == blake3(b.raw).digest() for x, b in zip(back, blocks, strict=True))
        assert same or not anchor.lossless, f"{anchor.name} is not exact"
        coded = sum(anchors.size(w) for w in wires)
        width = 8 * blocks[0].parts[0].itemsize
        row = [*label, anchor.name, f"{raw / coded:.3f}", f"{width * coded / raw:.2f}", "yes" if same else "NO, lossy"]
        if speeds:
            numbers = list(range(len(blocks)))
            row += [f"{_rate(lambda b, a=anchor: a.encode(b), blocks, raw, n):.3f}" for n in (1, 2)]
            row += [
                f"{_rate(lambda i, a=anchor, w=wires: a.decode(w[i], blocks[i]), numbers, raw, n):.3f}" for n in (1, 2)
            ]
        rows.append(row)
    return rows


_SPEEDS = ["encode GB/s, 1 thread", "2 threads", "decode GB/s, 1 thread", "2 threads"]


def texts(given: argparse.Namespace) -> None:
    """Four kinds of text that the predictor never saw, 2,048 tokens of each."""
    from kvswap import codec as codecs

    loaded = _model(given)
    predictor = _predictor(given, loaded)
    rows, totals = [], {"raw": 0, "planes": 0, "predictive": 0, "int8": 0, "int8-channel": 0}
    for name, text in documents(given.documents).items():
        sizes = dict.fromkeys(totals, 0)
        ids = loaded.tokenize(text)[:TOKENS]
        for block in blocks_of(loaded, ids, predictor):
            for codec in sizes:
                used, wire = codecs.encode(block.parts, loaded.dtype, codec, block.context)
                if codecs.get(used).lossless:
                    out = [np.empty_like(p) for p in block.parts]
                    codecs.decode(used, wire, out, loaded.dtype, block.context)
                    assert all((a == b).all() for a, b in zip(out, block.parts, strict=True)), f"{codec} is not exact"
                sizes[codec] += len(wire)
        for codec, size in sizes.items():
            totals[codec] += size
        rows.append(_ratios(f"{name}, {len(ids)} tokens", sizes))
    rows.append(_ratios("all", totals))
    table(["text", "planes", "predictive", "predictive, bits a value", "int8 (lossy)", "int8-channel (lossy)"], rows)


def _ratios(name: str, sizes: dict[str, int]) -> list[str]:
    raw = sizes["raw"]
    by = {codec: f"{raw / size:.3f}" for codec, size in sizes.items()}
    bits_ = f"{16 * sizes['predictive'] / raw:.2f}"
    return [name, by["planes"], by["predictive"], bits_, by["int8"], by["int8-channel"]]


def layers(given: argparse.Namespace) -> None:
    """Bits a value of K and of V, by layer, beside the bounds."""
    loaded = _model(given)
    predictor = _predictor(given, loaded)
    found: dict[str, list[list[float]]] = {"planes": [], "predictive": [], "channel": [], "words": []}
    for text in documents(given.documents).values():
        every = list(blocks_of(loaded, loaded.tokenize(text)[: 4 * BLOCK_TOKENS], predictor))
        for block in every:
            found["planes"].append(bits.planes(block, loaded.dtype))
            if block.context is not None:
                found["predictive"].append(bits.predictive(block, loaded.dtype))
        whole = [np.concatenate([b.parts[i] for b in every], axis=1) for i in range(len(every[0].parts))]
        found["channel"].append([bits.by_channel(p) for p in whole])
        found["words"].append([bits.order0(p) for p in whole])
    mean = {name: np.mean(rows, axis=0) for name, rows in found.items() if rows}
    names = {
        "words": "order-0 of words (bound)",
        "channel": "order-0 by channel (bound)",
        "planes": "planes",
        "predictive": "predictive",
    }
    shown = [n for n in names if n in mean]
    rows = []
    for layer in range(len(mean["planes"]) // 2):
        rows.append([layer, *(f"{mean[n][2 * layer + kv]:.2f}" for n in shown for kv in (0, 1))])
    rows.append(["mean", *(f"{mean[n][kv::2].mean():.2f}" for n in shown for kv in (0, 1))])
    table(["layer", *(f"{names[n]}, {kv}" for n in shown for kv in "KV")], rows)
    print(f"\nA zero-mean normal value in bfloat16: {bits.gaussian(7):.2f} bits ({16 / bits.gaussian(7):.2f}x)")
    if given.picture:
        _draw(given.picture, {names[n]: mean[n] for n in shown})


def _draw(path: Path, mean: dict[str, np.ndarray]) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "kvswap"
    from matplotlib import pyplot

    colours = {"planes": "#888888", "predictive": "#0060a8"}
    figure, axis = pyplot.subplots(figsize=(8, 4))
    for name in ("planes", "predictive"):
        if name in mean:
            axis.plot(mean[name][0::2], color=colours[name], label=f"{name}, K")
            axis.plot(mean[name][1::2], color=colours[name], linestyle="--", label=f"{name}, V")
    axis.axhline(8, color="#c00000", linewidth=0.8, label="int8, which is lossy")
    axis.set(xlabel="layer", ylabel="bits a value", ylim=(0, 16), title="bfloat16 KV, lossless: bits a value by layer")
    axis.legend(ncols=2, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"\npicture: {path}")


def speeds(given: argparse.Namespace) -> None:
    """Everything side by side, in the model's own dtype."""
    loaded = _model(given)
    blocks = list(blocks_of(loaded, ids_of(loaded, TOKENS), _predictor(given, loaded), _older(given)))
    table(["codec", "ratio", "bits a value", "exact", *_SPEEDS], _measure(blocks, loaded.dtype, []))


def contexts(given: argparse.Namespace) -> None:
    """Does the length of the document matter?  Ratios of the last blocks."""
    loaded = _model(given)
    predictor = _predictor(given, loaded)
    rows = []
    every = list(blocks_of(loaded, ids_of(loaded, min(8_192, loaded.context)), predictor))
    for tokens in (512, 2_048, 8_192):
        last = tokens // BLOCK_TOKENS
        if last <= len(every):
            rows += _measure(every[max(0, last - 4) : last], loaded.dtype, [tokens], speeds=False)
    table(["up to token", "codec", "ratio", "bits a value", "exact"], rows)


def dtypes(given: argparse.Namespace) -> None:
    """float16 and float32; and float32 whose values are really bfloat16."""
    from kvswap.codec.parts import widened
    from kvswap.codec.predictive import Context

    rows: list[list[Any]] = []
    for dtype in ("float16", "float32"):
        loaded = _model(given, dtype)
        blocks = list(blocks_of(loaded, ids_of(loaded, 4 * BLOCK_TOKENS), _predictor(given, loaded, quiet=True)))
        rows += _measure(blocks, dtype, [dtype], speeds=False)
    loaded = _model(given)
    wide = [
        Block(
            [widened(p, "bfloat16") for p in b.parts],
            b.context and Context(b.context.predictor, b.context.stack, 0, [], b.context.start),
        )
        for b in blocks_of(loaded, ids_of(loaded, 4 * BLOCK_TOKENS), _predictor(given, loaded, quiet=True))
    ]
    rows += _measure(wide, "float32", ["bfloat16 in float32"], speeds=False)
    table(["dtype", "codec", "ratio", "bits a value", "exact"], rows)


def sizes(given: argparse.Namespace) -> None:
    """The predictor's size against ratio and speed."""
    from kvswap.codec import predictive
    from kvswap.worker import training

    if given.corpus is None:
        raise SystemExit("sizes needs --corpus DIR")
    loaded = _model(given)
    held = [loaded.tokenize(text)[:TOKENS] for text in documents(given.documents).values()]
    rows = []
    for before, token_table, coarseness in (
        (1, 1_024, 0.15),
        (1, 4_096, 0.05),
        (2, 2_048, 0.12),
        (2, 4_096, 0.05),
        (3, 4_096, 0.06),
        (4, 4_096, 0.08),
        (4, 4_096, 0.05),
    ):
        size = training.Size(before, token_table, coarseness)
        data, _ = training.train_predictor(
            loaded, given.corpus, 40_000, BLOCK_TOKENS, lambda done: None, lambda: None, size
        )
        predictor = predictive.load(data)
        blocks = [block for ids in held for block in blocks_of(loaded, ids, predictor)]
        raw = sum(len(b.raw) for b in blocks)
        wires = [predictive.encode(b.context, b.parts, loaded.dtype) for b in blocks]
        outs = [[np.empty_like(p) for p in b.parts] for b in blocks[:8]]

        def decode(i: int, outs: Any = outs, blocks: Any = blocks, wires: Any = wires) -> None:
            predictive.decode(blocks[i].context, wires[i], outs[i], loaded.dtype)

        few = sum(len(b.raw) for b in blocks[:8])
        rate = 1e3 * _rate(decode, list(range(len(outs))), few, 2)
        ratio = f"{raw / sum(map(len, wires)):.3f}"
        rows.append([before, token_table, coarseness, f"{len(data) / 1e6:.1f}", ratio, f"{rate:.0f}"])
        print(rows[-1], flush=True)
    table(
        ["layers back", "tokens in the table", "coarseness", "predictor MB", "ratio", "decode MB/s, 2 threads"],
        rows,
    )
