"""Loading in one process: verification and decoding, without daemon or network (`kvswap bench paper` has these).

For each length: prefill (one shot, and on the canonical schedule), seconds from the artifact in the
local store to a cache the model can use, one resident step, and first token of a 12-token question
either way.  Also peak memory of loading, in a process of its own.

    python benchmarks/bench_load.py [bfloat16|float32] [--quick]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import BLOCK_TOKENS, LENGTHS, Stored, ids_of, load_default, machine, once, seconds, table  # noqa: E402

MEMORY = """
import sys, re
from pathlib import Path
import torch
from kvswap.artifact.assembly import load
from kvswap.store.files import chunk_path
from kvswap.trust import read_statement
root = Path(sys.argv[1])
manifest = read_statement(Path(sys.argv[2]).read_bytes()).manifest
read = lambda cid: chunk_path(root, cid).read_bytes()
load(manifest, read, tokens=256)  # imports and thread pools are there before
status = lambda name: int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1)) * 1024
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
held = load(manifest, read)
print((status("VmHWM") - before) / manifest.raw_bytes)
"""


def main() -> None:
    from kvswap.artifact.assembly import load
    from kvswap.model.cache import build_cache
    from kvswap.model.prefill import forward, prefill

    dtype = next((a for a in sys.argv[1:] if not a.startswith("-")), "bfloat16")
    lengths = LENGTHS[:3] if "--quick" in sys.argv else LENGTHS
    loaded = load_default(dtype)
    print(f"{machine()}, {dtype}, blocks of {BLOCK_TOKENS}\n")
    question = loaded.tokenize_continuation("\n\nQuestion: What does this text describe?\nAnswer:")[:12]
    rows = []
    for length in lengths:
        ids = ids_of(loaded, length)
        stored = Stored(loaded, ids)
        repeat = 3 if length < 1000 else 1
        one_shot = min(once(lambda ids=ids: prefill(loaded, ids, len(ids)))[0] for _ in range(repeat))
        canonical = min(once(lambda ids=ids: prefill(loaded, ids, BLOCK_TOKENS))[0] for _ in range(repeat))

        def to_cache(stored: Stored = stored, length: int = length) -> object:
            tensors = load(stored.manifest, stored.read, headroom=64)
            return build_cache(loaded.model.config, tensors, length)

        loading = seconds(to_cache)
        cache = to_cache()
        forward(loaded, cache, question, length)
        at = length + len(question)

        def one_step(cache: object = cache, at: int = at) -> None:
            forward(loaded, cache, [5], at)
            for layer in cache.layers:
                layer.crop(-1)

        def first_token(to_cache: object = to_cache, length: int = length) -> None:
            forward(loaded, to_cache(), question, length)

        step, first = seconds(one_step), seconds(first_token)
        rows.append(
            [
                length,
                f"{stored.raw_bytes / 1e6:.1f}",
                f"{stored.manifest.wire_bytes / 1e6:.1f}",
                f"{one_shot:.2f}",
                f"{canonical:.2f}",
                f"{loading * 1e3:.0f}",
                f"{stored.raw_bytes / loading / 1e9:.2f}",
                f"{step * 1e3:.0f}",
                f"{first * 1e3:.0f}",
                f"{canonical / first:.1f}x",
                f"{one_shot / first:.1f}x",
            ]
        )
        if length == lengths[-1]:
            envelope = Path(stored.directory.name) / "envelope"
            envelope.write_bytes(stored.made.statement.envelope)
            done = subprocess.run(
                [sys.executable, "-c", MEMORY, str(stored.store.chunks_directory), str(envelope)],
                capture_output=True,
                text=True,
                check=True,
            )
            memory = float(done.stdout)
        stored.store.close()
    table(
        [
            "tokens",
            "KV MB",
            "wire MB",
            "prefill one shot s",
            "prefill canonical s",
            "verify+decode+load ms",
            "GB/s of KV",
            "resident step ms",
            "first token from store ms",
            "vs canonical",
            "vs one shot",
        ],
        rows,
    )
    print(f"\npeak memory of loading {lengths[-1]} tokens: {memory:.2f}x the KV's size")


if __name__ == "__main__":
    main()
