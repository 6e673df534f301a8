"""What sealing for a group costs: the same artifact open and sealed, store to cache, side by side.

python benchmarks/bench_sealing.py [TOKENS]        real model, bf16, codec `planes`
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import BLOCK_TOKENS, ids_of, load_default, machine, seconds  # noqa: E402


def main() -> None:
    from kvswap.artifact import assembly
    from kvswap.artifact.sealing import Seal
    from tests.support import Ingested, group, publish_ids, seal_for

    print(machine())
    data, seal = bytes(1 << 22), Seal(bytes(32))
    closed = seal.close((1, 0, 0), data)
    close, opened = seconds(lambda: seal.close((1, 0, 0), data), 9), seconds(lambda: seal.open((1, 0, 0), closed), 9)
    print(
        f"4 MiB, one core: sealed at {len(data) / close / 1e9:.2f} GB/s, opened at {len(data) / opened / 1e9:.2f} GB/s"
    )

    def load(made: Ingested) -> float:
        return seconds(lambda: assembly.load(made.manifest, made.chunks.__getitem__, seal=made.statement.seal), 9)

    tokens = int(next((a for a in sys.argv[1:] if a.isdigit()), "2048"))
    loaded = load_default()
    plain = publish_ids(loaded, ids_of(loaded, tokens), BLOCK_TOKENS)
    sealed = seal_for(plain, group())
    first, second = load(plain), load(sealed)
    raw, wire = plain.manifest.raw_bytes, plain.manifest.wire_bytes
    print(
        f"{plain.manifest.prefix.tokens} tokens, {raw / 1e6:.1f} MB of KV in {wire / 1e6:.1f} MB: open {first * 1e3:.0f} ms, "
        f"sealed {second * 1e3:.0f} ms ({second / first:.2f}x), {sealed.manifest.wire_bytes - wire} bytes more on the wire"
    )


if __name__ == "__main__":
    main()
