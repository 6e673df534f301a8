"""What a daemon answers, judged the same way by both clients.  Pure: no IO."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kvswap import api
from kvswap.client.calls import SHORT_SECONDS, Call
from kvswap.core.errors import DaemonNotRunning, DaemonSilent, KvswapError
from kvswap.core.runfile import not_running

if TYPE_CHECKING:
    from kvswap.api.result import Result

R = TypeVar("R", bound="Result")

HEARTBEAT = "heartbeat"
HEADER = "Kvswap-Heartbeat"  # of an answer of lines: seconds between its heartbeats
REQUEST_HEADER = "Kvswap-Request"
NDJSON = "application/x-ndjson"
_LONG = 1 << 20  # bytes of JSON
_MISSED = 10  # heartbeats in a row, and the daemon is taken for frozen


def note_answer(call: Call[Any], status: int, request: str | None, began: float) -> None:
    """Log that the head of an answer came, and `request`, the id that the daemon's log has for it.

    Of the path only the first two parts: what follows may name a document.  `began` is of `time.monotonic`.
    """
    if (logging := sys.modules.get("logging")) is None:  # a short command has not loaded it: nobody listens
        return
    logger = logging.getLogger("kvswap.client")
    if logger.isEnabledFor(logging.DEBUG):
        path = "/".join(call.path.partition("?")[0].split("/")[:3])
        logger.debug(
            "%s %s %d, %.3f s, request %s", call.method, path, status, time.monotonic() - began, request or "none"
        )


def message_of(line: bytes | str, where: Path | str) -> dict[str, Any]:
    """Parse one JSON object of an answer.  Raises `DaemonNotRunning` for anything else."""
    try:
        value = _decoded(line) if len(line) > _LONG else json.loads(line)
    except (ValueError, RecursionError) as error:
        raise not_ours(where) from error
    if not isinstance(value, dict):
        raise not_ours(where)
    return value


def _decoded(text: bytes | str) -> Any:
    """Parse a long JSON text, in half of the time that `json` takes.  Raises `ValueError`, `RecursionError`."""
    import msgspec  # importing it costs more than it saves on a short one

    return msgspec.json.decode(text)


def error_of(body: dict[str, Any], status: int) -> KvswapError:
    """Return the exception that an error body stands for."""
    data = body.get("error")
    if isinstance(data, dict):
        return KvswapError.from_dict(data)
    return KvswapError(
        f"the daemon answered with status {status}", cause="client and daemon are of two versions", hint="kvswap status"
    )


def result_of(message: dict[str, Any], call: Call[R], where: Path | str) -> R:
    """Return the result in the last line of an answer.  Raises the error that it stands for."""
    if "error" in message:
        raise error_of(message, 500)
    return read_as(call, message.get("result"), where)


def whole_answer(data: bytes, call: Call[R], where: Path | str) -> dict[str, Any]:
    """Read an answer that is not of lines: as the last line of one that is.  Raises `DaemonNotRunning`.

    A long one is read into its structs at once, in two thirds of the time that dicts between would take.
    """
    if len(data) <= _LONG:
        return {"result": message_of(data, where)}
    from msgspec import DecodeError

    kind: type[R] = getattr(api, call.result)
    try:
        return {"result": kind.decode(data)}
    except (DecodeError, RecursionError) as error:
        raise not_ours(where) from error


def joined_rows(lines: Iterable[bytes], call: Call[R], where: Path | str) -> dict[str, Any]:
    """Read an answer whose rows come in lines, while they come: as the last line of one that is of lines.

    Raises `DaemonNotRunning`.
    """
    import msgspec

    kind: type[R] = getattr(api, call.result)
    (field,) = msgspec.structs.fields(kind)
    decode, rows = msgspec.json.Decoder(field.type).decode, []
    try:
        for line in lines:
            rows += decode(line)
    except (msgspec.DecodeError, RecursionError) as error:
        raise not_ours(where) from error
    return {"result": kind(**{field.name: rows})}


def read_as(call: Call[R], value: object, where: Path | str) -> R:
    """Read the JSON form of what a call is answered.  Raises `DaemonNotRunning` for another form."""
    from msgspec import ValidationError

    kind: type[R] = getattr(api, call.result)
    if isinstance(value, kind):
        return value
    try:
        return kind.from_json(value)
    except (ValidationError, RecursionError) as error:
        raise not_ours(where) from error


def silence_seconds(call: Call[Any], heartbeat: str | None) -> float:
    """Return for how long an answer of lines may be silent: much less where the daemon promised heartbeats."""
    try:
        promised = float(heartbeat or 0)
    except ValueError:
        promised = 0.0
    return max(SHORT_SECONDS, _MISSED * promised) if 0 < promised < call.seconds else call.seconds


def not_ours(where: Path | str) -> DaemonNotRunning:
    """Return the error for a listener that does not speak as a daemon does."""
    return DaemonNotRunning(
        f"what answers for {where} is not a kvswap daemon",
        cause="its port was taken over by another program, or the daemon is of another version",
        hint=_start(where),
    )


def not_there(where: Path | str) -> DaemonNotRunning:
    """Make the error of a home, or a URL, at which nothing listens."""
    if isinstance(where, Path):
        return not_running(where)
    return DaemonNotRunning(
        f"no kvswap daemon answers at {where}", cause="it was not started, or it ended", hint=_start(where)
    )


def _start(where: Path | str) -> str:
    return f"kvswap daemon --home {where} &" if isinstance(where, Path) else "kvswap daemon, where that is to run"


def silent(where: Path | str, seconds: float) -> DaemonSilent:
    """Return the error for an answer of which nothing came in time."""
    return DaemonSilent(
        f"the daemon of {where} does not answer: nothing came for {seconds:g} s",
        cause="it is stopped (SIGSTOP), or this machine has far too much to do",
        hint="look at the process that daemon.json names, end it and start it again",
    )


def went_away(error: BaseException | None = None) -> KvswapError:
    """Return the error for a connection that ended before the answer did."""
    what = f" ({type(error).__name__})" if error is not None else ""
    return KvswapError(
        f"the daemon ended before the answer{what}", cause="it was stopped, or it failed", hint="kvswap status"
    )
