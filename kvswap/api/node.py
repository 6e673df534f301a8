"""The results about the node itself: its names, its models, its settings, and its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvswap.api.result import Result

if TYPE_CHECKING:
    from kvswap.core.settings import Settings


class SettingRow(Result, frozen=True, kw_only=True):
    """A setting: its value, where that came from, and the value without anybody's doing."""

    name: str
    value: Any
    source: str
    """The place: `default`, the line of a file, an environment variable, or an option."""
    default: Any


class SettingsResult(Result, frozen=True, kw_only=True):
    """The settings of one home, of its running daemon or as a daemon would get them now."""

    home: str
    settings: list[SettingRow]


class StopResult(Result, frozen=True, kw_only=True):
    """The word of a daemon that it is going to end."""

    pid: int
    home: str


class UiResult(Result, frozen=True, kw_only=True):
    """A link that opens the local page in one browser, once."""

    url: str
    """The link; it holds a secret until it is opened."""
    seconds: float
    """The seconds for which it works."""


class IdentityResult(Result, frozen=True, kw_only=True):
    """The names of this node, and where it is reached."""

    peer: str | None
    """Its PeerId; None: it takes no part in the network."""
    publisher: str
    addresses: list[str]


class ReadyResult(Result, frozen=True, kw_only=True):
    """The word of a daemon that it serves, and what does not work."""

    ok: bool
    p2p: bool
    degraded: dict[str, str]


class AliveResult(Result, frozen=True, kw_only=True):
    """The word of a daemon that it lives."""

    ok: bool


class ModelEntry(Result, frozen=True, kw_only=True):
    """A model of the catalogue, or on this machine."""

    name: str
    here: bool


class ModelsResult(Result, frozen=True, kw_only=True):
    """The models, and which of them are here."""

    models: list[ModelEntry]


class ModelRow(ModelEntry, frozen=True, kw_only=True):
    """A model, as `kvswap model ls` shows it."""

    identity: str | None
    """The digest of its weights and tokenizer, in hex; None: it is not here, or not right."""
    license: str | None
    directory: str | None


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
    if isinstance(value, tuple):
        return [item if isinstance(item, str) else item.to_json() for item in value]
    return str(value) if isinstance(value, Path) else value
