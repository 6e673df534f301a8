"""`python -m tests.daemon.impatient daemon …`: a real daemon that takes a silent model process for frozen sooner."""

from __future__ import annotations

import os

from kvswap.core.limits import LIMITS

if __name__ == "__main__":  # and not where tests are collected: it changes the limits of its process
    object.__setattr__(LIMITS, "worker_silent_seconds", float(os.environ["SILENT_SECONDS"]))

    from kvswap.cli.main import entry

    entry()
