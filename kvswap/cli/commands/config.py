"""`kvswap config`: every setting, and where its value comes from."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from kvswap.cli.completing import SettingType
from kvswap.cli.output import Output, verb
from kvswap.core.errors import DaemonNotRunning, KvswapError, NotFound
from kvswap.core.text import meant

if TYPE_CHECKING:
    from kvswap.api.node import SettingRow


@click.command(
    "config",
    help="Show every setting, or NAME alone: its value, and whether a default, a file, the "
    "environment or an option gave it.",
)
@click.argument("name", required=False, type=SettingType())
@click.option("--changed", is_flag=True, help="Only settings that are not the default.")
@verb
def config_command(output: Output, name: str | None, changed: bool) -> None:
    """Print the settings that hold: those of the running daemon, or else those that one would get now."""
    from kvswap.api.machine import ConfigResult, ConfigRow
    from kvswap.api.node import setting_rows
    from kvswap.core.settings import Settings

    settings, places = Settings.load_with_places(output.home)
    now = {row.name: row for row in setting_rows(settings, places)}
    running: dict[str, SettingRow] = {}
    with suppress(DaemonNotRunning):
        running = {row.name: row for row in _of_daemon(output)}
    holds = now | running
    if name is not None and name not in holds:
        raise NotFound(
            f"there is no setting {name!r}{meant(name, holds)}", cause="a typing error", hint="kvswap config"
        )
    rows = [row for row in holds.values() if name in (None, row.name) and not (changed and row.source == "default")]
    answer = ConfigResult(
        home=str(settings.home),
        file=str(settings.home / "config.toml"),
        daemon=bool(running),
        settings=[
            ConfigRow(name=r.name, value=r.value, source=r.source, default=r.default, after_restart=_other(r, now))
            for r in rows
        ],
    )
    output.result(answer, lambda: _shown(output, rows, name))
    for row in rows:
        if row.name in running and not row.source.startswith("--") and row.value != now[row.name].value:
            output.note(f"{row.name} would be {_text(now[row.name].value)} after a restart ({now[row.name].source})")
    if not running:
        output.note("no daemon runs: these are what one would start with")


def _of_daemon(output: Output) -> list[SettingRow]:
    try:
        return output.client.config().settings
    except DaemonNotRunning:
        raise
    except KvswapError as error:  # of an older version, perhaps
        output.note(f"the daemon does not say with what it was started: {error.message}")
        return []


def _other(row: SettingRow, now: dict[str, SettingRow]) -> Any:
    """Return the value after a restart of the daemon, where it is another one; else None."""
    given = row.source.startswith("--")  # an option, which is given again
    return now[row.name].value if row.name in now and not given and now[row.name].value != row.value else None


def _shown(output: Output, rows: list[SettingRow], name: str | None) -> str:
    if name is not None:
        return "\n".join(f"{_text(row.value)}\n  from {row.source}" for row in rows)
    return output.table(("SETTING", "VALUE", "FROM"), [(r.name, _text(r.value), r.source) for r in rows])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:g}" if isinstance(value, float) else str(value) if value != "" else "-"
