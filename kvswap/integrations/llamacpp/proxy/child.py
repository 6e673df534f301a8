"""The process around a llama-server that `kvswap llama` starts: it ends with the one that started it.

    python -m kvswap.integrations.llamacpp.proxy.child COMMAND [ARGUMENTS]

COMMAND is a llama-server, which is run beside, or `bundled`: xllamacpp's, which is run within.  Standard input is a
pipe of the starting process: at its end, however that process ended, the server is ended too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kvswap.integrations.llamacpp.proxy.flags import read_bundled

BUNDLED = "bundled"
_ENUMS = {
    "flash_attn_type": ("llama_flash_attn_type", "LLAMA_FLASH_ATTN_TYPE_"),
    "cache_type_k": ("ggml_type", "GGML_TYPE_"),
    "cache_type_v": ("ggml_type", "GGML_TYPE_"),
}  # parameter -> xllamacpp's enumeration, and how its names begin
_LISTS = {"api_keys", "hostnames"}


def _when_left(end: Callable[[], None]) -> None:
    """Call `end` in a thread once the other end of standard input is closed."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 1 << 12):
                pass
        end()

    threading.Thread(target=wait, name="left", daemon=True).start()


def run_beside(command: Sequence[str]) -> int:
    """Run a llama-server as a process of its own, and return its exit status."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    _when_left(process.kill)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: process.send_signal(number))
    status = process.wait()
    return status if status >= 0 else 128 - status


def run_bundled(arguments: Sequence[str]) -> None:
    """Run xllamacpp's llama-server in this process, until the process is ended."""
    import xllamacpp

    parameters: Any = xllamacpp.CommonParams()
    for flag, value in read_bundled(arguments):
        *place, name = flag.parameter.split(".")
        holder = parameters
        for part in place:
            holder = getattr(holder, part)
        if name in _ENUMS:
            enumeration, prefix = _ENUMS[name]
            value = getattr(getattr(xllamacpp, enumeration), prefix + value)
        elif name in _LISTS:
            value = [value]
        elif name == "model_alias":
            value = {value}
        setattr(holder, name, value)
    _when_left(lambda: os._exit(0))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    server = xllamacpp.Server(parameters)  # returns when the model is loaded
    threading.Event().wait()
    del server


def main(command: Sequence[str]) -> int:
    """Run the server that a command names, and return its exit status."""
    if command[0] != BUNDLED:
        return run_beside(command)
    run_bundled(command[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
