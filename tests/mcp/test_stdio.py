"""`kvswap mcp` as an agent program starts it: the SDK's own client, pipes, a real daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from tests.mcp.published import DIGEST, text_of
from tests.support import ROOT, Daemon, run

pytestmark = pytest.mark.agents


def program(node: Daemon, *arguments: str) -> StdioServerParameters:
    words = ["-m", "kvswap", "mcp", "--home", str(node.home), *arguments]
    return StdioServerParameters(command=sys.executable, args=words, cwd=ROOT, env=dict(os.environ))


@pytest.mark.parametrize("mode", ["auto", "legacy"])  # what programs of today and of last year speak
def test_an_agent_asks_over_pipes(node: Daemon, mode: str) -> None:
    async def session() -> tuple[list[str], Any, list[float]]:
        made: list[float] = []

        async def report(progress: float, total: float | None, message: str | None) -> None:
            made.append(progress)

        async with Client(program(node), mode=mode) as client:
            tools = [tool.name for tool in (await client.list_tools()).tools]
            asked = {"ref": DIGEST, "question": "What?", "max_tokens": 8}
            return tools, await client.call_tool("ask", asked, progress_callback=report), made

    tools, answer, made = run(session())
    assert "publish" not in tools and "ask" in tools
    assert not answer.is_error, text_of(answer)
    assert answer.structured_content["fetched_tokens"] > 0
    assert made == sorted(set(made)) and made


def test_what_is_published_for_an_agent_is_in_the_log(node: Daemon, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("What the user allowed. " * 40)
    (tmp_path / "b.txt").symlink_to("/etc/hostname")

    async def session() -> tuple[Any, Any]:
        async with Client(program(node, "--allow-publish", str(tmp_path))) as client:
            return (
                await client.call_tool("publish", {"path": str(tmp_path / "a.txt")}),
                await client.call_tool("publish", {"path": "b.txt"}),
            )

    done, refused = run(session())
    assert not done.is_error, text_of(done)
    assert refused.is_error and "symbolic link" in text_of(refused)
    log = (node.home / "kvswap.log").read_text()
    assert f"for an agent as {done.structured_content['artifact']}" in log
    assert "publishing b.txt for an agent was refused" in log
