"""The server of tools: lists them, calls them, and reports errors so that an agent can act on them."""

from __future__ import annotations

import json
from typing import Any

from mcp import types
from mcp.server import Server, ServerRequestContext

from kvswap import api
from kvswap.core.errors import KvswapError
from kvswap.core.failures import record
from kvswap.core.version import __version__
from kvswap.mcp.progress import CallProgress
from kvswap.mcp.tools import TOOLS, AskArguments, Tool, ToolContext

_INSTRUCTIONS = (
    "kvswap shares KV caches of documents between machines: a document that somebody prefilled need not be prefilled "
    "again. Ask about long documents here instead of reading them."
)
Context = ServerRequestContext[Any, Any]


def listed(tool: Tool, *, output: bool = True) -> types.Tool:
    """Describe a tool as the protocol has it, with the schema of its result or without."""
    return types.Tool(
        name=tool.name,
        description=tool.description,
        input_schema=tool.input_schema(),
        output_schema=tool.output_schema() if output else None,
        annotations=types.ToolAnnotations(
            read_only_hint=tool.read_only,
            destructive_hint=None if tool.read_only else tool.destructive,
            idempotent_hint=None if tool.read_only else True,
            open_world_hint=tool.open_world,
        ),
    )


def offered(node: ToolContext) -> list[Tool]:
    """Return the tools that there are: `publish` only where something may be published."""
    return [tool for tool in TOOLS if tool.name != "publish" or node.folders.allowed]


def make_server(node: ToolContext) -> Server[Any]:
    """Make the server of these tools, for any transport."""
    tools = {tool.name: tool for tool in offered(node)}

    async def list_tools(context: Context, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[listed(tool) for tool in tools.values()])

    async def call_tool(context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        tool = tools.get(params.name)
        if tool is None:
            return _refused(_unknown(params.name))
        try:
            given = tool.parse(params.arguments or {})
            progress = CallProgress(given.max_tokens if isinstance(given, AskArguments) else 0)
            async with progress.sent(context.session.report_progress):
                result = await tool.call(node, given, progress)
        except Exception as error:  # noqa: BLE001 - the boundary of a call: said to the agent, and in the log
            return _refused(record(error, f"the tool {tool.name}"))
        content = tool.content(result)
        return types.CallToolResult(
            content=[types.TextContent(text=_text(result, content))], structured_content=content
        )

    return Server(
        "kvswap", version=__version__, instructions=_INSTRUCTIONS, on_list_tools=list_tools, on_call_tool=call_tool
    )


def _text(result: api.Result, content: dict[str, Any]) -> str:
    """Return what programs show that do not read structured results: an answer's text, or the JSON."""
    return result.text if isinstance(result, api.AskResult) else json.dumps(content, ensure_ascii=False)


def _unknown(name: str) -> KvswapError:
    from kvswap.mcp.folders import NotAllowed

    if name == "publish":
        return NotAllowed("publishing is off", cause="the user has allowed no folder")
    return KvswapError(f"there is no tool {name!r}", cause="a typing error", hint="list the tools")


def _refused(error: KvswapError) -> types.CallToolResult:
    """Report an error as the result of a call: what happened, the likely cause, and what helps."""
    text = f"{error.message}\nCause: {error.cause}\nHint: {error.hint}\n({error.code})"
    return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)
