"""`kvswap stop`: end the daemon of a home, and wait until it has."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import click

from kvswap.cli.objective import Finite
from kvswap.cli.output import Output, verb
from kvswap.core.errors import TookTooLong

_LOOK_SECONDS = 0.05


@click.command("stop", help="Ask the daemon to end, and wait until it has.")
@click.option(
    "--timeout", type=Finite(0, 86_400), default=60.0, show_default=True, help="Seconds to wait; 0: do not wait."
)
@verb
def stop_command(output: Output, timeout: float) -> None:
    """End the daemon of this home.  Raises `DaemonNotRunning` where none runs, `TookTooLong` where it does not end."""
    from kvswap.api.machine import EndResult

    began = time.monotonic()
    answer = output.client.stop()
    while timeout and not ended(answer.pid):
        if time.monotonic() > began + timeout:
            raise TookTooLong(
                f"the daemon (process {answer.pid}) was asked to end, and has not after {timeout:g} s",
                cause="a disk that hangs, or a machine that has far too much to do",
                hint=f"kvswap logs -n 20; kill {answer.pid} ends it at once, and nothing that matters is lost",
            )
        time.sleep(_LOOK_SECONDS)
    seconds = round(time.monotonic() - began, 3)
    text = f"stopped (process {answer.pid}, {seconds:.1f} s)" if timeout else f"asked process {answer.pid} to end"
    done = EndResult(pid=answer.pid, home=answer.home, stopped=bool(timeout), seconds=seconds)
    output.result(done, text)


def ended(pid: int) -> bool:
    """Return True if no process of this id runs; one that has ended and that nobody waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    with contextlib.suppress(OSError, IndexError):  # where there is no /proc the answer above is all there is
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
