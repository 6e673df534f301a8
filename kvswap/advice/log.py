"""Logs of requests: a JSON object a line, a request of OpenAI's chat API or one that has it as its `body`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from kvswap.core.errors import UsageError
from kvswap.core.failures import as_kvswap_error
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable
from kvswap.model.chat import plain_messages, plain_tools

_WRAPPED = ("body", "request", "params")  # of OpenAI's batches, and of common proxies


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request of a log: its line, from 1, with messages and tools as templates take them."""

    line: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SkippedLine:
    """A line that is no request."""

    line: int
    why: str


def read_log(path: Path, only: Collection[int] | None = None) -> Iterator[LoggedRequest | SkippedLine]:
    """Yield the requests of a log in their order, one in memory at a time, and what is none.

    `only`: the numbers of the lines that are wanted.  Raises `UsageError` for a line that is longer than any document,
    and kvswap's error for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LIMITS.api_body_bytes + 1):
                number += 1
                if len(line) > LIMITS.api_body_bytes:
                    raise UsageError(
                        f"line {number} of {printable(str(path))} is over {LIMITS.api_body_bytes} bytes",
                        cause="the log is not a JSON object a line",
                    )
                if line.strip() and (only is None or number in only):
                    yield _request(number, line)
    except OSError as error:
        raise as_kvswap_error(error, f"reading {printable(str(path))}") from error


def _request(number: int, line: bytes) -> LoggedRequest | SkippedLine:
    try:
        value = msgspec.json.decode(line)
        wrapped = (value.get(name) for name in _WRAPPED) if isinstance(value, dict) else ()
        body = next((one for one in (value, *wrapped) if isinstance(one, dict) and "messages" in one), None)
        if body is None:
            return SkippedLine(number, "it has no messages")
        return LoggedRequest(number, plain_messages(body["messages"]), plain_tools(body.get("tools") or []))
    except (msgspec.DecodeError, RecursionError) as error:
        return SkippedLine(number, f"it is not JSON: {error}")
    except UsageError as error:
        return SkippedLine(number, error.message)
