"""Types that several threads use for the first time at once.  In a process of its own: what goes wrong is a crash."""

from __future__ import annotations

import subprocess
import sys

import pytest

_RACE = """
import sys, threading
import msgspec
from kvswap.core import wire

sys.setswitchinterval(1e-6)
one = {f"f{i}": [1] for i in range(12)}
value = {f"g{i}": [one] for i in range(6)}
data = wire.pack(value)
for number in range(100):
    inner = msgspec.defstruct(f"Inner{number}", [(f"f{i}", list[int]) for i in range(12)])
    outer = msgspec.defstruct(f"Outer{number}", [(f"g{i}", list[inner]) for i in range(6)])
    together = threading.Barrier(6)

    def use():
        together.wait()
        %s

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


@pytest.mark.parametrize("use", ["wire.decode(data, outer)", "wire.convert(value, outer)"])
def test_threads_may_use_a_type_for_the_first_time_together(use: str) -> None:
    """msgspec builds what it keeps of a type at its first use, and other threads see it half built."""
    done = subprocess.run([sys.executable, "-c", _RACE % use], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not done.stderr
