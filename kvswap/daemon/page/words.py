"""Figures and names as the page writes them."""

from __future__ import annotations

import time

from kvswap.core import words

_DAY = 86_400
_TB = 1e12


def size(value: float) -> str:
    """Write a number of bytes, in powers of ten: as the command line does, and terabytes above that."""
    return words.size(value) if value < _TB else f"{value / _TB:,.1f} TB"


def duration(seconds: float) -> str:
    """Write a time span with its largest unit."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds < 2 * _DAY else f"{seconds / _DAY:,.0f} days"


def ago(at: float | None) -> str:
    """Write how long ago a moment (Unix seconds) was."""
    if not at:
        return "never"
    seconds = time.time() - at
    return f"in {duration(-seconds)}" if seconds < -1 else f"{duration(max(seconds, 1))} ago"


def date(at: float) -> str:
    """Write a moment (Unix seconds) as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def clock(at: float) -> str:
    """Write a moment (Unix seconds) as the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def dollars(value: float) -> str:
    """Write an amount of US dollars; small ones with the digits that matter."""
    return f"${value:,.2f}" if abs(value) >= 1 else f"${value:.4f}"


def number(value: float) -> str:
    """Write a whole number with separators."""
    return f"{value:,.0f}"


def counted(value: int, what: str) -> str:
    """Write how many of something there are, as in "1 peer" and "2 peers"."""
    return f"{value:,} {what}" if value == 1 else f"{value:,} {what}s"


def short(name: str | None) -> str:
    """Write the beginning and the end of a long id."""
    if not name:
        return ""
    return name if len(name) <= 20 else f"{name[:10]}…{name[-6:]}"


FILTERS = {each.__name__: each for each in (size, duration, ago, clock, date, dollars, number, counted, short)}
