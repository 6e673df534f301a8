"""`python -m tests.daemon.impatient daemon …`: a real daemon that takes a silent model process for frozen sooner."""

from __future__ import annotations

import os

from kvswap.core.limits import LIMITS

object.__setattr__(LIMITS, "worker_silent_seconds", float(os.environ["SILENT_SECONDS"]))

from kvswap.cli.main import entry  # noqa: E402

if __name__ == "__main__":
    entry()
