"""The C core of `predictive2` by itself: under sanitizers, and on another processor; `native.c` says what is run.

A coverage-guided fuzzer runs the same (in `native.c`'s directory, with clang):

    clang -O1 -g -DFUZZING -ffp-contract=off -fsanitize=fuzzer,address -I../../../kvswap/codec/predictive2 native.c
    ./a.out -max_len=600 CORPUS
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

SOURCE = Path(__file__).with_name("native.c")
INPUTS = "150"
# Not with -O2: there GCC 12 makes wrong code of a vectorized loop, with both of these sanitizers and no other options.
SANITIZED = ("-O1", "-fno-sanitize-recover=all", "-fsanitize=address,undefined")

pytestmark = pytest.mark.faults  # half a minute of compiling


def run(compiler: str, out: Path, *options: str, by: tuple[str, ...] = ()) -> str:
    """Compile the harness and return what it prints of inputs by chance; it ends otherwise where forms differ."""
    for tool in (compiler, *by):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    headers = f"-I{ROOT / 'kvswap' / 'codec' / 'predictive2'}"
    subprocess.run([compiler, "-ffp-contract=off", "-w", *options, headers, str(SOURCE), "-o", str(out)], check=True)
    done = subprocess.run([*by, str(out), "seeds", INPUTS], check=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == int(INPUTS)
    return done.stdout


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> str:
    return run("cc", tmp_path_factory.mktemp("native") / "usual", "-O2")


def test_sanitizers_find_nothing_and_change_nothing(usual: str, tmp_path: Path) -> None:
    assert run("cc", tmp_path / "sanitized", *SANITIZED) == usual
    accepted = [line for line in usual.splitlines() if not line.endswith(" 0000000000000000")]
    assert int(INPUTS) // 4 < len(accepted) < int(INPUTS)  # both what is read and what is refused


def test_another_processor_makes_the_same_bits(usual: str, tmp_path: Path) -> None:
    """AArch64, where the compiler makes NEON of the portable form, and would make fused multiply-adds of it."""
    assert run("aarch64-linux-gnu-gcc", tmp_path / "arm", "-O3", "-static", by=("qemu-aarch64",)) == usual
