"""What states cost a publisher: LFM2's cache geometry, and a gated delta net of 12 layers.  Random weights.

    python benchmarks/bench_states.py [DIRECTORY] [--tokens 2048] [--runs 3]

With a model's DIRECTORY that is measured, else both built here.  Bare prefill (the same calls, nothing captured) and
publishing are run in turns; bytes are those of the manifest's chunks.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kvswap.core.defaults import BLOCK_TOKENS as BLOCK  # noqa: E402
from tests.families import FAMILIES, build  # noqa: E402
from tests.support import DOCUMENT  # noqa: E402

LFM2: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 2048,  # smaller than LFM2-1.2B's: the cache is not made of it
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "layer_types": ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
}
DELTA: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 3,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 8,
}


def measure(directory: Path, tokens: int, runs: int) -> dict[str, float]:
    """Return the figures of one model."""
    from kvswap.artifact.checkpoints import state_bytes
    from kvswap.artifact.manifest import ChunkRef
    from kvswap.artifact.specs import Layout
    from kvswap.model.cache import new_cache
    from kvswap.model.load import load_model
    from kvswap.model.prefill import canonical_prefill
    from kvswap.worker.conversation import ChunkEvent, JobEvent
    from kvswap.worker.inbox import Inbox, JobPipe
    from kvswap.worker.publishing import Publishing

    loaded = load_model(directory, directory.name, "bfloat16")
    text = DOCUMENT.read_text() * 4
    while len(loaded.tokenize(text)) > tokens + 64:
        text = text[: int(len(text) * 0.95)]
    ids = loaded.tokenize(text)
    bare: list[float] = []
    published: list[float] = []
    chunks: list[ChunkRef] = []
    shape: Layout | None = None
    for run in range(runs + 1):
        began = time.perf_counter()
        for _ in canonical_prefill(loaded, new_cache(loaded.model.config, len(ids)), ids, BLOCK):
            pass
        middle = time.perf_counter()
        chunks.clear()

        def say(event: JobEvent) -> None:
            if isinstance(event, ChunkEvent):
                chunks.append(event.ref)

        pipe = JobPipe(Inbox(), say, lambda: None)
        made = Publishing(loaded, "planes", None, pipe).run(text, BLOCK, False)
        if run:  # the first of both warms caches and allocators
            bare.append(middle - began)
            published.append(time.perf_counter() - middle)
        shape = made.layout
    assert shape is not None  # noqa: S101
    states = [ref for ref in chunks if shape.is_state(ref.run)]
    last = max(ref.block for ref in chunks)
    raw = sum(ref.raw_length for ref in chunks)
    stored = sum(ref.length for ref in chunks)
    return {
        "tokens": len(ids),
        "bare_seconds": statistics.median(bare),
        "publish_seconds": statistics.median(published),
        "ratio": statistics.median(p / b for p, b in zip(published, bare, strict=True)),
        "raw_mb": raw / 1e6,
        "raw_of_keys": raw / (raw - sum(ref.raw_length for ref in states)),
        "stored_mb": stored / 1e6,
        "checkpoints": len(shape.checkpoints),
        "checkpoint_mb": state_bytes(shape.layers, shape.dtype) / 1e6,
        "inner_checkpoints_of_stored": sum(ref.length for ref in states if ref.block != last) / stored,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        models = {asked.directory.name: asked.directory} if asked.directory else {}
        if not models:
            for name, family, fields in (("lfm2 geometry", "lfm2", LFM2), ("delta net", "qwen3.5", DELTA)):
                assert family in FAMILIES  # noqa: S101
                models[name] = build(Path(scratch) / name.replace(" ", "-"), family, **fields)
        for name, directory in models.items():
            found = measure(directory, asked.tokens, asked.runs)
            print(f"{name}: " + ", ".join(f"{key} {value:,.3f}" for key, value in found.items()))


if __name__ == "__main__":
    main()
