"""The side of standard input and output: an agent program starts the process, and ends it by closing its input."""

from __future__ import annotations

from typing import Any

from mcp.server import Server
from mcp.server.stdio import stdio_server


async def serve(server: Server[Any]) -> None:
    """Serve until standard input ends."""
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
