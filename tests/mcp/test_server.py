"""The tools against a real daemon, called by the SDK's own client; the transports have tests of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest
from mcp import Client, types

from kvswap.client import AsyncClient
from kvswap.mcp.folders import AllowedFolders
from kvswap.mcp.server import make_server
from kvswap.mcp.tools import TOOLS, ToolContext
from tests.mcp.published import DIGEST, TEXT, text_of
from tests.support import Daemon, run, until


def using(node: Daemon, work: Callable[[Client], Awaitable[Any]], folders: AllowedFolders | None = None) -> Any:
    """Do something with a client of the node's tools."""

    async def all_of_it() -> Any:
        async with Client(make_server(ToolContext(AsyncClient(node.home), folders or AllowedFolders()))) as client:
            return await work(client)

    return run(all_of_it())


def test_publish_is_offered_only_where_it_is_allowed(node: Daemon, tmp_path: Path) -> None:
    async def names(client: Client) -> list[str]:
        return [tool.name for tool in (await client.list_tools()).tools]

    assert using(node, names) == ["find", "plan", "ask", "why", "list", "fetch"]
    assert using(node, names, AllowedFolders.below([tmp_path])) == [tool.name for tool in TOOLS]


def test_hints_say_what_changes_something(node: Daemon, tmp_path: Path) -> None:
    async def hints(client: Client) -> dict[str, tuple[Any, Any]]:
        tools = (await client.list_tools()).tools
        return {tool.name: (tool.annotations.read_only_hint, tool.annotations.destructive_hint) for tool in tools}

    told = using(node, hints, AllowedFolders.below([tmp_path]))
    assert told == {
        **dict.fromkeys(("find", "plan", "why", "list"), (True, None)),
        **dict.fromkeys(("ask", "fetch"), (False, False)),
        "publish": (False, True),
    }


CALLS = {
    "find": {"ref": DIGEST},
    "plan": {"text": TEXT},
    "ask": {"ref": DIGEST, "question": "What?", "max_tokens": 4},
    "why": {"ref": DIGEST},
    "list": {},
    "fetch": {"ref": DIGEST},
}


def test_every_tool_answers_by_its_schema(node: Daemon) -> None:
    async def answers(client: Client) -> dict[str, types.CallToolResult]:
        return {name: await client.call_tool(name, given) for name, given in CALLS.items()}

    made = using(node, answers)
    schemas = {tool.name: tool.output_schema() for tool in TOOLS}
    for name, result in made.items():
        assert not result.is_error, text_of(result)
        jsonschema.validate(result.structured_content, schemas[name])
        assert set(result.structured_content) <= set(schemas[name]["properties"]), name
    assert made["find"].structured_content["artifacts"][0]["document"] == DIGEST
    assert made["plan"].structured_content["action"] == "fetch"
    assert text_of(made["ask"]) == made["ask"].structured_content["text"]
    assert made["ask"].structured_content["artifact"] == made["fetch"].structured_content["artifact"]
    (why,) = made["why"].structured_content["artifacts"]
    assert why["standing"] == "own" and made["why"].structured_content["plan"]["reason"]
    assert len(made["list"].structured_content["artifacts"]) == 1


def test_why_of_what_nobody_offers_says_so(node: Daemon) -> None:
    why = using(node, lambda client: client.call_tool("why", {"text": "another text, that nobody published"}))
    assert why.structured_content["artifacts"] == []
    assert why.structured_content["plan"]["action"] == "prefill"


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("find", {"ref": "sha256:" + 64 * "0"}, "not_found"),
        ("find", {"ref": "/etc/passwd"}, "usage"),
        ("find", {}, "neither ref nor text"),
        ("ask", {"ref": DIGEST, "question": "x", "tofu": True}, "tofu"),
        ("ask", {"ref": DIGEST, "question": "x", "host": "auto"}, "host"),
        ("ask", {"ref": DIGEST}, "question"),
        ("list", {"limit": 0}, "limit"),
        ("publish", {"path": "/etc/passwd"}, "not_allowed"),
        ("withdraw", {"ref": DIGEST}, "no tool"),
    ],
)
def test_what_is_refused_says_why(node: Daemon, name: str, given: dict[str, Any], said: str) -> None:
    result = using(node, lambda client: client.call_tool(name, given))
    assert result.is_error and said in text_of(result)
    assert "Hint:" in text_of(result)


def test_a_file_is_published_with_progress_and_logged(
    node: Daemon, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("A text of its own. " * 100)
    made: list[float] = []

    async def report(progress: float, total: float | None, message: str | None) -> None:
        made.append(progress)

    with caplog.at_level(logging.WARNING, "kvswap.mcp"):
        result = using(
            node,
            lambda client: client.call_tool("publish", {"path": "a.txt"}, progress_callback=report),
            AllowedFolders.below([tmp_path]),
        )
    artifact = result.structured_content["artifact"]
    assert artifact in {row.artifact for row in node.client.ls()}
    assert made == sorted(set(made)) and 0 < made[-1] <= 1.0
    assert f"published a.txt for an agent as {artifact}" in caplog.text


def test_a_group_of_the_users_seals_what_is_published(node: Daemon, tmp_path: Path) -> None:
    node.client.group_new("team")
    (tmp_path / "b.txt").write_text("For the team. " * 30)
    result = using(
        node,
        lambda client: client.call_tool("publish", {"path": "b.txt"}),
        AllowedFolders.below([tmp_path], "team"),
    )
    assert result.structured_content["group"] == "team"


def test_a_call_that_is_cancelled_ends_the_work(node: Daemon) -> None:
    """A long answer is given up at its first one."""
    given = {"ref": DIGEST, "question": "And then?", "max_tokens": 800}

    async def cancelled(client: Client) -> list[float]:
        begun, made = asyncio.Event(), []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            made.append(progress)
            begun.set()

        async with anyio.create_task_group() as group:

            async def call() -> None:
                result = await client.call_tool("ask", given, progress_callback=report)
                raise AssertionError(f"it was not cancelled: {text_of(result)}")

            group.start_soon(call)
            await begun.wait()
            group.cancel_scope.cancel()
        return made

    assert using(node, cancelled)[0] < 0.5
    until(lambda: [p.state for p in node.client.status().model.processes] == ["idle"], what="the work is over")


def test_without_a_daemon_a_tool_says_how_to_start_one(tmp_path: Path) -> None:
    result = using(Daemon(tmp_path / "none"), lambda client: client.call_tool("list", {}))
    assert result.is_error and "kvswap daemon" in text_of(result)
