"""The run-file: how a client finds the daemon of a home.  `daemon.json`, mode 0600, gone after it."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from kvswap.core.errors import DaemonNotRunning
from kvswap.core.limits import LIMITS

NAME = "daemon.json"


@dataclass(frozen=True, slots=True)
class RunFile:
    """Where the daemon listens, its process, and the token that its API wants."""

    url: str
    token: str
    pid: int

    def write(self, home: Path) -> None:
        descriptor, temporary = tempfile.mkstemp(dir=home, prefix=".daemon-")  # mkstemp makes it 0600
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(self), file)
        os.replace(temporary, home / NAME)

    @staticmethod
    def remove(home: Path) -> None:
        (home / NAME).unlink(missing_ok=True)

    @classmethod
    def read(cls, home: Path) -> RunFile:
        """Raises `DaemonNotRunning` with the command that starts one."""
        path = home / NAME
        try:
            if path.stat().st_size > LIMITS.config_bytes:
                raise ValueError("too large")
            data = json.loads(path.read_text())
            found = cls(str(data["url"]), str(data["token"]), int(data["pid"]))
            os.kill(found.pid, 0)
        except PermissionError:
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise not_running(home) from error
        return found


def not_running(home: Path) -> DaemonNotRunning:
    return DaemonNotRunning(
        f"no kvswap daemon runs for {home}",
        cause="it was not started, or it ended",
        hint=f"kvswap daemon --home {home} &",
    )
