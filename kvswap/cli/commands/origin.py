"""`kvswap origin`: places that keep artifacts as files, beside peers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click

from kvswap.cli.output import Output, size, verb
from kvswap.core.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])


def place_options(function: F) -> F:
    """Add the options that say how an S3 store is reached."""
    options = (
        click.option("--endpoint", metavar="URL", default="", help="Of an S3 store other than Amazon's."),
        click.option("--region", default="", help="Of the S3 store."),
        click.option("--profile", default="", help="In ~/.aws/credentials; otherwise AWS_* of the daemon."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def url_of(text: str) -> str:
    """Return a URL in the one form that names the origin; a path that is typed stands for the directory there."""
    from kvswap.core.origin_settings import url

    if text.startswith(("/", ".", "~")):
        text = "file://" + quote(str(Path(text).expanduser().resolve()))
    try:
        return str(url(text))
    except ValueError as error:
        raise UsageError(f"this is not {error}", cause="a typing error", hint="kvswap origin add --help") from error


@click.group("origin", help="Places that keep artifacts as files: directories, web servers, buckets.")
def origin_command() -> None:
    """Group the verbs of origins."""


@origin_command.command("add", help="Look for artifacts at URL from now on: file://, https://, s3://.")
@click.argument("url")
@place_options
@click.option("--price-per-gb", type=float, default=0.0, help="US dollars for a gigabyte read there.")
@click.option("--price-per-request", type=float, default=0.0, help="US dollars.")
@click.option("--write", is_flag=True, help="kvswap push without a URL goes there.")
@verb
def add(output: Output, url: str, **options: Any) -> None:
    """Add an origin, after a look whether it answers."""
    name = url_of(url)
    where = {key: options[key] for key in ("endpoint", "region", "profile")}
    added = output.client.origin_add(name, **options)
    output.result(added, f"added {added.url}" + (", where kvswap push goes" if added.write else ""))
    found = output.client.origin_test(name, **where)
    if not found.ok:
        output.note(f"it does not answer as it should now: {found.problem}")
    if added.plain:
        output.note("over http others can see what you read there; what they change is refused")


@origin_command.command("ls", help="List the origins, and what was experienced with each.")
@verb
def ls(output: Output) -> None:
    """List the origins."""
    found = output.client.origins()
    from kvswap.api import OriginsResult

    rows = [
        (
            o.url,
            "yes" if o.write else "",
            f"${o.price_per_gb:g}/GB" if o.price_per_gb else "",
            size(o.bytes_in),
            f"{o.rate / 1e6:.1f} MB/s" if o.rate else "-",
            o.failures,
            o.invalid_chunks,
            f"rests for {o.rests:.0f} s" if o.rests else "",
        )
        for o in found
    ]
    headers = ("ORIGIN", "PUSH", "PRICE", "IN", "RATE", "FAILURES", "INVALID", "")
    output.result(OriginsResult(origins=found), lambda: output.table(headers, rows))


@origin_command.command("rm", help="Look at URL no more; what is there stays.")
@click.argument("url")
@verb
def rm(output: Output, url: str) -> None:
    """Forget an origin."""
    done = output.client.origin_rm(url_of(url))
    output.result(done, f"removed {done.url}")


@origin_command.command("test", help="Read, and where that is possible write and remove, one small file at URL.")
@click.argument("url")
@place_options
@verb
def test(output: Output, url: str, endpoint: str, region: str, profile: str) -> int:
    """Test an origin; the exit code is 9 if it does not do what it should."""
    found = output.client.origin_test(url_of(url), endpoint=endpoint, region=region, profile=profile)
    words = {True: "yes", False: "no", None: "not tried"}
    lines = [
        found.url,
        f"  reads                     {words[found.reads]}",
        f"  writes                    {words[found.writes]}",
        f"  two writers lose nothing  {words[found.conditional]}",
        f"  first answer after        {found.seconds * 1e3:.0f} ms" + (" over http" if found.plain else ""),
    ]
    output.result(found, "\n".join(lines + ([f"  {found.problem}"] if found.problem else [])))
    return 0 if found.ok else 9
