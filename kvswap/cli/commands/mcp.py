"""`kvswap mcp`."""

from __future__ import annotations

from pathlib import Path

import click

from kvswap.cli.objective import group_option
from kvswap.cli.output import Output, verb
from kvswap.core.errors import NotFound

_PORT = 4778


@click.command("mcp", help="Serve find, plan, ask, why, list and fetch to an agent program, over MCP.")
@click.option("--http", is_flag=True, help="Over HTTP on loopback, with a token, instead of standard input and output.")
@click.option("--port", type=click.IntRange(0, 65_535), default=_PORT, show_default=True, help="Of HTTP; 0: any.")
@click.option(
    "--allow-publish",
    multiple=True,
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Let the agent publish text files below DIR (repeatable).  Whoever can reach this node can read them.",
)
@group_option("Seal what the agent publishes for the holders of this group's key.")
@verb
def mcp_command(output: Output, http: bool, port: int, allow_publish: tuple[Path, ...], group: str | None) -> None:
    """Serve tools until standard input ends, or with HTTP until SIGTERM or Ctrl-C."""
    import asyncio

    try:
        from kvswap.mcp.server import make_server
    except ModuleNotFoundError as error:
        raise NotFound(
            f"kvswap mcp needs {error.name}, which this installation does not have",
            cause="kvswap was installed without its extra `mcp`",
            hint='pip install "kvswap[mcp]"',
        ) from error
    from kvswap.api import McpReady
    from kvswap.client import AsyncClient
    from kvswap.core import log
    from kvswap.mcp.folders import AllowedFolders
    from kvswap.mcp.tools import ToolContext

    client = AsyncClient(output.home)
    log.start_log(client.home)
    server = make_server(ToolContext(client, AllowedFolders.below(allow_publish, group)))
    if http:
        from kvswap.mcp import http as over_http

        token, listening = over_http.token_of(client.home), over_http.listen(port)
        url = f"http://{over_http.ADDRESS}:{listening.getsockname()[1]}{over_http.PATH}"
        file = client.home / over_http.TOKEN_FILE
        output.result(McpReady(url=url, token_file=str(file)), f"kvswap mcp is ready at {url}\n  token in {file}")
        asyncio.run(over_http.serve(server, listening, token))
        return
    from kvswap.mcp.stdio import serve

    asyncio.run(serve(server))
