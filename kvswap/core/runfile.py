"""The run-file, by which a client finds the daemon of a home: `daemon.json`, mode 0600, removed when the daemon ends.

Where the home has no room for it, or takes no writes, it lies in a directory of the user's under the system's directory
for such files, named after the home.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from kvswap.core.atomic import is_running, write_atomic
from kvswap.core.errors import DaemonNotRunning, LocalFault, UsageError
from kvswap.core.failures import as_kvswap_error
from kvswap.core.files import read_file
from kvswap.core.limits import LIMITS

NAME = "daemon.json"
_URL = re.compile(r"http://(127\.0\.0\.1|localhost|\[::1\]):\d{1,5}")


@dataclass(frozen=True, slots=True)
class RunFile:
    """The address of a running daemon, its process id, and the bearer token of its API."""

    url: str
    token: str
    pid: int

    def write(self, home: Path) -> None:
        """Write the file where `read` looks for it.  Raises the error of the home when no place takes it."""
        text = json.dumps(asdict(self))
        try:
            write_atomic(home / NAME, text.encode(), durable=False)
        except OSError as error:
            try:
                elsewhere = _elsewhere(home)
                elsewhere.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not _private(elsewhere.parent):
                    raise LocalFault(f"{elsewhere.parent} is not this user's alone") from error
                write_atomic(elsewhere, text.encode(), durable=False)
            except OSError:
                raise as_kvswap_error(error, "writing the run-file") from error

    @staticmethod
    def remove(home: Path) -> None:
        """Remove the file, wherever it was written.  Never raises: a client recognises a stale one by its process."""
        for path in (home / NAME, _elsewhere(home)):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @classmethod
    def read(cls, home: Path) -> RunFile:
        """Read the run-file of a home whose daemon runs.

        Raises `DaemonNotRunning` with the command that starts one, or `LocalFault` where the file may not be read.
        """
        elsewhere = _elsewhere(home)
        places = [home / NAME, *([elsewhere] if _private(elsewhere.parent) else [])]
        problem: Exception | None = None
        for path in places:
            try:
                found = cls._parse(read_file(path, LIMITS.config_bytes))
                if is_running(found.pid):
                    return found
            except UsageError as error:
                problem = problem or error
            except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
                problem = problem or error
        if isinstance(problem, UsageError) and isinstance(problem.__cause__, PermissionError):
            raise LocalFault(problem.message, cause=problem.cause, hint=problem.hint) from problem
        raise not_running(home) from problem

    @classmethod
    def _parse(cls, data: bytes) -> RunFile:
        value = json.loads(data[: LIMITS.config_bytes])
        found = cls(str(value["url"]), str(value["token"]), int(value["pid"]))
        if not _URL.fullmatch(found.url) or int(found.url.rpartition(":")[2]) > 65_535:
            raise ValueError("not the address of a daemon")
        if not found.token.isascii() or not found.token.isprintable():
            raise ValueError("not the token of a daemon")
        return found


def _elsewhere(home: Path) -> Path:
    name = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:32]
    base = os.environ.get("XDG_RUNTIME_DIR", "")
    scratch = Path(os.environ.get("TMPDIR") or "/tmp") / f"kvswap-{os.getuid()}"  # noqa: S108 - private, or not used
    root = Path(base) / "kvswap" if base.startswith("/") else scratch
    return root / f"{name}.json"


def _private(directory: Path) -> bool:
    try:
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def not_running(home: Path) -> DaemonNotRunning:
    """Make the error of a home for which no daemon answers."""
    return DaemonNotRunning(
        f"no kvswap daemon runs for {home}",
        cause="it was not started, or it ended",
        hint=f"kvswap daemon --home {home} &",
    )
