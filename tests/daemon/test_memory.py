"""Threads share few arenas of the C library's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import ctypes, sys, threading
from kvswap.daemon.memory import few_arenas
if sys.argv[1] == "few":
    few_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(12)
def allocate():
    together.wait()
    libc.malloc(10_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_many_threads_share_two_arenas(tmp_path: Path) -> None:
    arenas = {}
    for how in ("few", "as usual"):
        told = tmp_path / how
        subprocess.run([sys.executable, "-c", _PROGRAM, how, str(told)], check=True, timeout=600)
        arenas[how] = told.read_text().count("<heap nr=")
    assert arenas["few"] <= 2 < arenas["as usual"]
