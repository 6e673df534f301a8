"""The program: `kvswap`, and `python -m kvswap`."""

import gc
import os
import sys


def entry() -> None:
    """Run the command line; Ctrl-C ends it with one line instead of a traceback, even while modules are imported."""
    gc.disable()  # nothing that an import makes is garbage; `cli.main` enables it before a verb runs
    try:
        from kvswap.cli.main import main

        code = main()
    except KeyboardInterrupt:
        code = 130
        _write(b"kvswap: interrupted; what was fetched is kept, the same command resumes\n")
    sys.exit(code)


def _write(line: bytes) -> None:
    try:
        os.write(2, line)
    except OSError:  # standard error is closed
        pass


if __name__ == "__main__":
    entry()
