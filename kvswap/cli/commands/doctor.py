"""`kvswap doctor`: check this machine and this installation, and say what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib import metadata

import click

from kvswap.cli.output import Output, size, verb
from kvswap.core.errors import KvswapError

PACKAGES = ("libp2p", "cryptography", "zstandard", "msgpack", "aiohttp", "blake3")


@click.command("doctor", help="Check this machine and this installation.")
@verb
def doctor_command(output: Output) -> int:
    """Check this machine, and return the exit code: 1 where anything is wrong."""
    from kvswap.api.machine import DoctorResult, DoctorRow

    rows = [DoctorRow(check=name, ok=ok, detail=detail, hint=hint) for name, ok, detail, hint in _checks(output)]
    cells = [("ok" if r.ok else "FAIL", r.check, r.detail, "" if r.ok else r.hint) for r in rows]
    good = all(r.ok for r in rows)
    output.result(DoctorResult(ok=good, checks=rows), lambda: output.table(("", "CHECK", "DETAIL", "HINT"), cells))
    return 0 if good else 1


def _checks(output: Output) -> Iterator[tuple[str, bool, str, str]]:
    from kvswap.core.failures import INSTALL_TORCH
    from kvswap.core.settings import Settings
    from kvswap.model import catalogue, needs

    version = sys.version_info
    yield (
        "python",
        version >= (3, 11),
        f"{version.major}.{version.minor}.{version.micro}",
        "install Python 3.11 or newer",
    )
    for package in PACKAGES:
        try:
            yield package, True, metadata.version(package), ""
        except metadata.PackageNotFoundError:
            yield package, False, "missing", f"pip install {package}"
    lacking = needs.missing()
    for package in needs.PACKAGES:  # a node that shares and fetches needs neither
        here = package not in lacking
        detail = metadata.version(package) if here else f"not here: this node computes nothing ({INSTALL_TORCH})"
        yield package, True, detail, ""
    try:
        settings = Settings.load(output.home)
    except KvswapError as error:
        yield "settings", False, error.message, error.hint or "edit config.toml"
        return
    home = settings.home
    existing = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    yield "disk", free > 2_000_000_000, f"{size(free)} free at {existing}", "kvswap gc, or another --home"
    private = not home.exists() or not home.stat().st_mode & 0o077
    yield "home", private, str(home), f"chmod 700 {home}"
    name = settings.model
    try:
        if not lacking:
            catalogue.resolve(name, settings.models)
        yield "model", True, name if not lacking else "none", ""
    except KvswapError as error:
        yield "model", False, name, error.hint
    try:
        status = output.client.status()
        yield "daemon", True, f"{status.peers} peers", ""
        yield "p2p", status.p2p, "up" if status.p2p else str(status.degraded), "kvswap events"
    except KvswapError as error:
        yield "daemon", False, error.message, error.hint or ""
