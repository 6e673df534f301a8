"""Make a predictor of version 2 of one of version 1: the same weights, and tables counted on texts.

    python benchmarks/codec/convert.py OLD NEW FILE...     the first 1,024 tokens of each text file

The texts should be of many kinds, and none of those that anything is measured on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.codec.samples import blocks_of  # noqa: E402
from benchmarks.common import load_default  # noqa: E402
from kvswap.codec import predictive  # noqa: E402
from kvswap.codec.predictive2.convert import converted  # noqa: E402

TOKENS = 1_024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    given = parser.parse_args()
    loaded = load_default("bfloat16")
    old = predictive.load(given.old.read_bytes())

    def samples() -> Iterator[tuple[int, int, list[np.ndarray]]]:
        for path in given.texts:
            ids = loaded.tokenize(path.read_text(errors="ignore"))[:TOKENS]
            for block in blocks_of(loaded, ids, old):
                yield 0, block.context.start, block.parts

    data = predictive.dump(converted(old, samples(), "bfloat16"))
    predictive.load(data)
    given.new.write_bytes(data)


if __name__ == "__main__":
    main()
