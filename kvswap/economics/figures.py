"""Reading of the dated figures, those shipped with kvswap or the user's."""

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
    """The example of the study: one document, its tokens, its readers, and the measured speed-up of reuse."""

    readers: _Amount
    tokens: _Amount
    bytes_per_token: _Amount
    speed_up: _Amount


class Tariffs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The prices in US dollars.

    `cached_fraction` is none: it is the price of a cached input token as a part of an uncached one's.
    """

    input_per_million_tokens: _Amount
    cached_fraction: _Amount
    egress_per_gb: _Amount
    storage_per_gb_month: _Amount
    machine_per_hour: _Amount


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The totals that the paper prints, in US dollars."""

    prefill: _Amount
    cached: _Amount
    hosted: _Amount
    ship_raw: _Amount
    ship_int8: _Amount


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A range of prices in US dollars."""

    least: _Amount
    most: _Amount


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model: its active parameters per token, and the bytes of KV per token."""

    name: Annotated[str, Meta(max_length=60)]
    parameters: _Amount
    bytes_per_token: _Amount


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures that the study needs, as in `figures.toml`."""

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
    """Read the figures from a TOML file, or those that ship with kvswap.  Raises `UsageError` naming what is wrong."""
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
