"""The results of verbs about this machine and this home, which need no daemon."""

from __future__ import annotations

from typing import Any

from msgspec import field

from kvswap.api.result import Result
from kvswap.api.trust import BannedPublisher


class DaemonReady(Result, frozen=True, kw_only=True):
    """The word of a daemon that it serves."""

    ready: bool
    url: str
    """The address of the local API."""
    peer: str | None
    """Its PeerId; None: it takes no part in the network."""
    publisher: str
    addresses: list[str]
    degraded: dict[str, str]
    """The parts that do not work, and why."""
    lifted: list[BannedPublisher]
    """The bans by older rules that do not hold any more."""


class McpReady(Result, frozen=True, kw_only=True):
    """The word of `kvswap mcp --http` that it serves."""

    url: str
    token_file: str
    """The file of the home that holds the bearer token."""


class EndResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap stop`."""

    pid: int
    home: str
    stopped: bool
    """False: it was asked to, and not waited for."""
    seconds: float


class ConfigRow(Result, frozen=True, kw_only=True):
    """A setting, as `kvswap config` shows it."""

    name: str
    value: Any
    source: str = field(name="from")
    """The place: `default`, the line of a file, an environment variable, or an option."""
    default: Any
    after_restart: Any
    """The value that a daemon would get now, where it is another one; else None."""


class ConfigResult(Result, frozen=True, kw_only=True):
    """The settings that hold in a home."""

    home: str
    file: str
    """The file in which settings are read."""
    daemon: bool
    """True if they are those of a running daemon."""
    settings: list[ConfigRow]


class DoctorRow(Result, frozen=True, kw_only=True):
    """A check of this machine."""

    check: str
    ok: bool
    detail: str
    hint: str


class DoctorResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap doctor`."""

    ok: bool
    checks: list[DoctorRow]


class CompletionScript(Result, frozen=True, kw_only=True):
    """The result of `kvswap completion`."""

    shell: str
    script: str


class LogRow(Result, frozen=True, kw_only=True):
    """A record of the log, as `kvswap logs` shows it."""

    time: str
    """The time in UTC, in ISO 8601."""
    level: str
    logger: str
    process: int
    message: str
    request: str = ""
    """The id of the request that it was written for."""
    trace: str = ""
    """The lines after the first, as of a traceback."""


class SignedFile(Result, frozen=True, kw_only=True):
    """The result of `kvswap manifest check`: what is signed, in one field that has its kind's name."""

    valid: bool
    status_record: dict[str, Any] | None = field(name="head", default=None)
    audit: dict[str, Any] | None = None
    offer: dict[str, Any] | None = None
    receipt: dict[str, Any] | None = field(name="read", default=None)
    artifact: str | None = None
    chunks_checked: int | None = None
    """The chunks that were hashed and decoded."""
    manifest: dict[str, Any] | None = None
