"""Conversations as files: messages and tools in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kvswap.cli import streams
from kvswap.core.errors import UsageError
from kvswap.core.files import read_file
from kvswap.core.limits import LIMITS
from kvswap.core.text import printable

F = TypeVar("F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def chat_options(what: str) -> Callable[[F], F]:
    """Make the options `--chat` and `--tools`; `what` is done with the conversation."""

    def add(function: F) -> F:
        tools = click.option(
            "--tools", type=_FILE, help="With --chat: a JSON list of the tools that the model is given."
        )
        chat = click.option(
            "--chat", type=_FILE, help=f"{what}: a JSON list of messages, or a request of OpenAI's API."
        )
        return chat(tools(function))

    return add


def read_chat(chat: Path, tools: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Read messages and tools from their files; a request in the first may have both.  Raises `UsageError`."""
    given = _json(chat)
    messages = given.get("messages") if isinstance(given, dict) else given
    listed = _json(tools) if tools is not None else given.get("tools") if isinstance(given, dict) else None
    return _objects(messages, chat, "messages"), _objects(listed or [], tools or chat, "tools")


def _objects(value: Any, path: Path, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise UsageError(
            f"{printable(str(path))} has no list of {what}",
            cause="another format than that of OpenAI's API",
            hint='[{"role": "system", "content": "…"}, {"role": "user", "content": "…"}]',
        )
    return value


def _json(path: Path) -> Any:
    data = read_file(path, LIMITS.document_bytes, streams=True, note=streams.write_line)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{printable(str(path))} is not JSON: {error}", cause="a typing error, or another file"
        ) from error
