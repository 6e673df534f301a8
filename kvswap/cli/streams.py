"""Standard streams that may be closed, full, ASCII, or a terminal that obeys escape sequences.

stdout is data: what cannot be written there is an error with an exit code, and an answer goes to stderr instead.
stderr is for people: what cannot be written there is left out.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from kvswap.core.errors import KvswapError
from kvswap.core.text import printable


def prepare() -> None:
    """Make the streams safe to use: none missing, and none that refuses a character."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file or socket would get its number
            os.open(os.devnull, os.O_RDWR)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115, PTH123 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with suppress(OSError, ValueError):
                reconfigure(errors="backslashreplace")


def answer(text: str, *, keep: bool = False) -> None:
    """Write a line to stdout.

    Raises `StoreFull` where the disk behind it is full, `LocalFault` where it cannot be written for another reason;
    with `keep` the text then goes to stderr, so that it is not lost.  A reader that has gone away raises
    `BrokenPipeError`.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        silence(sys.stdout)
        if keep:
            write_line("kvswap: standard output cannot be written; what was to go there:")
            write_line(text)
        raise _lost(error) from error


def _lost(error: Exception) -> KvswapError:
    from kvswap.core.failures import as_kvswap_error

    cause = error if isinstance(error, OSError) else OSError(str(error))  # a closed stream raises ValueError
    failure = as_kvswap_error(cause, "writing to standard output")
    failure.cause, failure.hint = failure.cause and "the disk or device behind it", "look at where the output goes"
    return failure


def write_line(text: str) -> None:
    """Write a line for people to stderr, without what a terminal would obey; if that fails, nothing is said."""
    with suppress(OSError, ValueError):
        print(printable(text, "\n\t"), file=sys.stderr, flush=True)


def flush() -> None:
    """Flush both streams before the end, so that Python does not complain about it after us."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                silence(stream)


def silence(stream: object) -> None:
    """Let what a broken stream still holds go nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[attr-defined]
        os.close(nowhere)
