"""`kvswap ui`: the local page in a browser."""

from __future__ import annotations

import click

from kvswap.cli.output import Output, verb


@click.command("ui", help="Open the local page in a browser.  The link works once, for ten minutes.")
@click.option("--no-browser", is_flag=True, help="Only print the link.")
@click.option("--plain-host", is_flag=True, help="Link to 127.0.0.1, for a browser that knows no *.localhost names.")
@verb
def ui_command(output: Output, no_browser: bool, plain_host: bool) -> None:
    """Make a link to the page, open it, and print it where no browser could be started."""
    import webbrowser

    link = output.client.ui(plain=plain_host)
    opened = not no_browser and webbrowser.open(link.url)
    if plain_host:
        output.note("other programs of this machine get the page's cookie if this browser visits them at 127.0.0.1")
    output.result(link, "opened the page in a browser" if opened else link.url)
