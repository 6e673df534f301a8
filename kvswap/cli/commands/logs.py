"""`kvswap logs`: what the daemon of a home wrote down, read from its files; needs no daemon."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvswap.cli import streams
from kvswap.cli.output import Output, verb
from kvswap.core.directories import home_directory
from kvswap.core.errors import NotFound, UsageError
from kvswap.core.log import LEVELS, NAME
from kvswap.core.text import printable

if TYPE_CHECKING:
    from kvswap.api.machine import LogRow

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) (\d+) (DEBUG|INFO|WARNING|ERROR|CRITICAL) (\S+): (.*)")
_REQUEST = re.compile(r"(.*) \[([0-9a-f]{8})\]")
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,3})?) ?(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_RANK = {name: rank for rank, name in enumerate((*LEVELS, "critical"))}
_MOST = 64 << 20  # bytes of one file: a log is turned long before
_PAUSE_SECONDS = 0.2


@dataclass(slots=True)
class LogLine:
    """One record of a log: `at` in Unix seconds, and `more` the lines after the first, as of a traceback."""

    at: float
    level: str
    logger: str
    process: int
    message: str
    request: str = ""
    more: list[str] = field(default_factory=list)

    @property
    def row(self) -> LogRow:
        """The record as `kvswap logs --json` prints it, with the time in UTC."""
        from kvswap.api.machine import LogRow

        at = datetime.fromtimestamp(self.at, UTC)
        return LogRow(
            time=at.strftime("%Y-%m-%dT%H:%M:%S.") + f"{at.microsecond // 1000:03d}Z",
            level=self.level,
            logger=self.logger,
            process=self.process,
            message=self.message,
            request=self.request,
            trace="\n".join(self.more),
        )

    def to_text(self) -> str:
        """Return the record as a line for a terminal, in local time, and what follows it."""
        at = datetime.fromtimestamp(self.at)
        request = f" [{self.request}]" if self.request else ""
        head = f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d} {self.level:7} {self.logger}: {self.message}"
        return "\n".join([head + request, *(f"    {line}" for line in self.more)])


def read_records(lines: Iterator[str]) -> Iterator[LogLine]:
    """Yield the records of a log, of text or JSON lines, or both; lines that begin no record belong to the last."""
    last: LogLine | None = None
    for line in lines:
        found = _of_json(line) if line.startswith("{") else _of_text(line)
        if found is None:
            if last is not None and len(last.more) < 1_000:
                last.more.append(line)
            continue
        if last is not None:
            yield last
        last = found
    if last is not None:
        yield last


def _of_text(line: str) -> LogLine | None:
    if (parts := _LINE.fullmatch(line)) is None:
        return None
    try:
        at = datetime.strptime(parts[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(parts[2]) / 1000
    except (ValueError, OverflowError):
        return None
    message, request = named.groups() if (named := _REQUEST.fullmatch(parts[6])) else (parts[6], "")
    return LogLine(at, parts[4].lower(), parts[5], int(parts[3]), message, request)


def _of_json(line: str) -> LogLine | None:
    try:
        shown = json.loads(line)
        at = datetime.strptime(shown["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()
        more = str(shown["trace"]).splitlines() if shown.get("trace") else []
        fields = (str(shown["level"]), str(shown["logger"]), int(shown["process"]), str(shown["message"]))
        return LogLine(at, *fields, str(shown.get("request", "")), more)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return None


class Since(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A time: so long ago (90s, 10m, 2h, 1d), or a date and time of this machine's clock."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return Unix seconds, or fail as click does."""
        if isinstance(value, float):
            return value
        if (ago := _AGO.fullmatch(str(value).strip())) is not None:
            return time.time() - float(ago[1]) * _SECONDS[ago[2]]
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{printable(str(value))!r} is no time: 10m, 2h, 1d, or 2026-01-31T12:00.", param, ctx)


@click.command("logs", help="Print the daemon's log, the last records of it; with -f also those to come.")
@click.option("-n", "--lines", type=click.IntRange(0, 1_000_000), default=50, show_default=True, help="Records.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="Only records of this level and above.")
@click.option("--since", type=Since(), help="Only records since then: 10m, 2h, 1d ago, or 2026-01-31T12:00.")
@verb
def logs_command(output: Output, lines: int, follow: bool, level: str, since: float | None) -> None:
    """Print records of `kvswap.log` and of the file before it."""
    path = home_directory(output.home) / NAME

    def fits(record: LogLine) -> bool:
        return _RANK.get(record.level, 0) >= _RANK[level] and (since is None or record.at >= since)

    if not path.exists() and not follow:
        raise NotFound(
            f"there is no log at {path}", cause="no daemon ever ran in this home", hint="kvswap daemon &, or --home"
        )
    tail = Tail(path)
    last: deque[LogLine] = deque(maxlen=lines)
    last.extend(filter(fits, read_records(tail.before())))
    for record in last:
        _print(output, record)
    while follow:
        for record in filter(fits, read_records(iter(tail.more()))):
            _print(output, record)
        time.sleep(_PAUSE_SECONDS)


def _print(output: Output, record: LogLine) -> None:
    streams.answer(json.dumps(record.row.to_json()) if output.as_json else printable(record.to_text(), "\n\t"))


class Tail:
    """The lines of a log that goes on in a new file when it is full."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._inode = 0
        self._rest = b""  # of a line that is not whole

    def before(self) -> Iterator[str]:
        """Yield the lines that are there, of the file before this one too."""
        older = self._path.with_name(f"{self._path.name}.1")
        if older.exists():
            yield from _lines(self._read(older, 0)[0])
        yield from self.more()

    def more(self) -> list[str]:
        """Return whole lines that came since the last call."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return []
        lines: list[str] = []
        if self._inode and found.st_ino != self._inode:  # the rest of the old file, which has another name now
            older = self._path.with_name(f"{self._path.name}.1")
            if older.exists() and older.stat().st_ino == self._inode:
                data, _ = self._read(older, self._at)
                lines = _lines(self._rest + data)
            self._at, self._rest = 0, b""
        if found.st_size < self._at:
            self._at, self._rest = 0, b""
        self._inode = found.st_ino
        data, self._at = self._read(self._path, self._at)
        whole, end, self._rest = (self._rest + data).rpartition(b"\n")
        return lines + _lines(whole + end)

    def _read(self, path: Path, start: int) -> tuple[bytes, int]:
        """Return the bytes from an offset on, and the offset after them.  Raises `UsageError`."""
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(_MOST)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", hint=f"ls -l {path}") from error
        return data, start + len(data)


def _lines(data: bytes) -> list[str]:
    """Cut at newlines alone, and not where `splitlines` does."""
    return data.decode(errors="replace").removesuffix("\n").split("\n") if data else []
