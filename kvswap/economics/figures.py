"""Reading the dated numbers, ours or the user's."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvswap.core.errors import UsageError
from kvswap.core.files import read_text
from kvswap.core.limits import LIMITS

SHIPPED = Path(__file__).parent / "figures.toml"
_Amount = Annotated[float, Meta(gt=0, lt=1e30)]


class Example(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One document and its readers."""

    readers: _Amount
    tokens: _Amount
    bytes_per_token: _Amount
    speed_up: _Amount


class Tariffs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars."""

    input_per_million_tokens: _Amount
    cached_fraction: _Amount
    egress_per_gb: _Amount
    storage_per_gb_month: _Amount
    machine_per_hour: _Amount


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the paper prints, US dollars."""

    prefill: _Amount
    cached: _Amount
    hosted: _Amount
    ship_raw: _Amount
    ship_int8: _Amount


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of prices, US dollars."""

    least: _Amount
    most: _Amount


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`parameters`: those that work on a token."""

    name: Annotated[str, Meta(max_length=60)]
    parameters: _Amount
    bytes_per_token: _Amount


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that the study needs; see `figures.toml`."""

    date: Annotated[str, Meta(max_length=20)]
    example: Example
    tariffs: Tariffs
    published: Published
    ratios: dict[str, _Amount]
    egress: Range
    machines: dict[str, _Amount]
    machine_prices: dict[str, _Amount]
    models: Annotated[list[Model], Meta(max_length=100)]


def read(path: Path | None = None) -> Figures:
    """From a TOML file; without one those that come with kvswap.  Raises `UsageError` naming what is wrong."""
    path = path or SHIPPED
    text = read_text(path, LIMITS.config_bytes)
    try:
        value: Any = tomllib.loads(text)
        figures = msgspec.convert(value, Figures, strict=False)
    except (tomllib.TOMLDecodeError, RecursionError, msgspec.ValidationError) as error:
        raise UsageError(f"{path} cannot be used: {error}", hint=f"start from a copy of {SHIPPED}") from error
    missing = {"raw", "int8"} - set(figures.ratios)
    unknown = set(figures.machine_prices) - set(figures.machines)
    if missing or unknown or figures.egress.least >= figures.egress.most:
        what = f"ratios lack {sorted(missing)}" if missing else f"unknown machines {sorted(unknown)}"
        raise UsageError(f"{path} cannot be used: {what if missing or unknown else 'the egress sweep is empty'}")
    return figures
