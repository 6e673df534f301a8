"""The answers about the node itself: its settings, and its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from kvswap.core.settings import Settings


class SettingRow(msgspec.Struct, frozen=True, kw_only=True):
    """A setting: its value, where that came from, and the value without anybody's doing."""

    name: str
    value: Any
    source: str
    """The place: `default`, the line of a file, an environment variable, or an option."""
    default: Any


class SettingsResult(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one home, of its running daemon or as a daemon would get them now."""

    home: str
    settings: list[SettingRow]


class StopResult(msgspec.Struct, frozen=True, kw_only=True):
    """The word of a daemon that it is going to end."""

    pid: int
    home: str


def setting_rows(settings: Settings, places: Mapping[str, str]) -> list[SettingRow]:
    """List every setting with its value and place; `places` is what `Settings.load_with_places` returns."""
    from kvswap.core.settings import Settings  # TOML, for what most clients have no use for

    usual = Settings(home=settings.home, models=settings.models)
    return [
        SettingRow(
            name=field.name,
            value=_plain(getattr(settings, field.name)),
            source=places.get(field.name, "default"),
            default=_plain(getattr(usual, field.name)) if "check" in field.metadata else None,
        )
        for field in fields(Settings)
    ]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    return list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
