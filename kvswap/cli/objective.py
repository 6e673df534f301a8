"""Options that several verbs share: what a plan is to mind, and how much to verify."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar, cast

import click

from kvswap.cli.completing import GroupType, PeerType
from kvswap.core.limits import LIMITS
from kvswap.cost import OBJECTIVES, Objective

_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?) ?([KMGT])(i)?B?", re.IGNORECASE)
F = TypeVar("F", bound=Callable[..., Any])


class Finite(click.FloatRange):
    """A number in a range; neither infinity nor what is no number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a number, or fail as click does."""
        number = super().convert(value, param, ctx)
        if isinstance(number, float) and not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Bytes(click.IntRange):
    """A number of bytes; K, M, G and T stand for powers of 1000, KiB, MiB, GiB and TiB for powers of 1024."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a size, or fail as click does."""
        if isinstance(value, str) and (found := _SIZE.fullmatch(value.strip())):
            number, unit, binary = found.groups()
            value = int(Decimal(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper()))
        return super().convert(value, param, ctx)


def plan_options(function: F) -> F:
    """Add the options of a plan to a command, which gets them as `objective`."""

    @click.option("--objective", type=click.Choice(OBJECTIVES), default="mix", help="What to save (default: both).")
    @click.option("--max-seconds", type=Finite(0, 1e18), help="Reject plans that take longer.")
    @click.option("--max-dollars", type=Finite(0, 1e18), help="Reject plans that cost more.")
    @click.option("--max-bytes", type=Bytes(0, 10**18), help="Reject plans that fetch more; also as 500M or 10G.")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        objective: str,
        max_seconds: float | None,
        max_dollars: float | None,
        max_bytes: int | None,
        **more: Any,
    ) -> Any:
        return function(*args, objective=Objective(objective, max_seconds, max_dollars, max_bytes), **more)

    return cast(F, wrapped)


def group_option(text: str = "Look only among what is sealed for this group.") -> Callable[[F], F]:
    """Make the option `--group`."""
    return click.option("--group", metavar="NAME", type=GroupType(), help=text)


def host_option() -> Callable[[F], F]:
    """Make the option `--host`."""
    text = "Let this host answer; auto: the best of those known, where the plan says so.  It learns the question."
    return click.option("--host", metavar="PEER|auto", type=PeerType("auto", kinds=("hosts",)), help=text)


def samples_option(text: str) -> Callable[[F], F]:
    """Make the option `--samples`: how many positions are computed again."""
    kind = click.IntRange(1, LIMITS.audit_samples)
    return click.option("--samples", type=kind, default=LIMITS.usual_samples, show_default=True, help=text)


def renamed_flag(new: str, old: str, text: str) -> Callable[[F], F]:
    """Make a flag whose old name works as well: hidden, and with a DeprecationWarning."""

    def remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
        if value:
            warnings.warn(f"{old} is now called {new}", DeprecationWarning, stacklevel=2)
            ctx.meta[old] = True

    def either(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
        return value or ctx.meta.get(old, False)

    def add(function: F) -> F:
        hidden = click.option(old, is_flag=True, hidden=True, is_eager=True, expose_value=False, callback=remember)
        return click.option(new, is_flag=True, callback=either, help=text)(hidden(function))

    return add


def untrusted_option() -> Callable[[F], F]:
    """Make the option `--allow-untrusted`."""
    text = "Take the cache of a publisher that is not trusted, once it is verified."
    return renamed_flag("--allow-untrusted", "--strangers", text)


def lossy_option(
    text: str = "Take a cache of a lossy codec, which is not bit-identical to the model's own.",
) -> Callable[[F], F]:
    """Make the option `--allow-lossy`."""
    return renamed_flag("--allow-lossy", "--inexact", text)
