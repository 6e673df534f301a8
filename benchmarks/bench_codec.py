"""Codecs on real keys and values, side by side in one run: sizes, speeds, and what each layer costs.

    python benchmarks/bench_codec.py                       all sections, about 12 minutes
    python benchmarks/bench_codec.py texts layers          some of them
    python benchmarks/bench_codec.py --model DIR --predictor FILE --documents a.txt b.txt
    python benchmarks/bench_codec.py sizes --corpus DIR    predictors of several sizes, trained (an hour)

The predictor is the one that comes with kvswap, or the one given; its size is printed and is not part of a
ratio, all else is.  Blocks are of 256 tokens and all layers.  Speeds are raw bytes a second, medians of
passes over all blocks, in a pool of one and of two threads.  "exact" compares digests of every block.
What is compared with: `pip install -e .[bench]`; what is not installed is left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.codec import sections  # noqa: E402
from benchmarks.common import machine  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sections", nargs="*", choices=[[], *sections.NAMES], default=[])
    parser.add_argument("--model", type=Path, help="a model's directory (default: the default model)")
    parser.add_argument("--predictor", type=Path)
    parser.add_argument("--older", type=Path, help="a predictor of version 1, to measure `predictive` too in `speeds`")
    parser.add_argument("--documents", type=Path, nargs="+", default=[])
    parser.add_argument("--corpus", type=Path, help="text files to train on, for `sizes`")
    parser.add_argument("--picture", type=Path, help="where `layers` draws its picture")
    given = parser.parse_args()
    print(machine())
    for name in given.sections or [n for n in sections.NAMES if n != "sizes"]:
        print(f"\n## {name}\n")
        getattr(sections, name)(given)


if __name__ == "__main__":
    main()
