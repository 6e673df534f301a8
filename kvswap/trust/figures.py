"""What the checks of an artifact measured: one struct for all levels, of which each fills in its own fields.

Fractions are whole millionths, so that the pipe of the model process, which has no floats, carries them as they are.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kvswap.trust.noise import MICRO

_FRACTIONS = ("chance", "worst", "margin")


class CheckFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The figures of one check; None: this level has no such figure.  Their order is that of the JSON form."""

    publisher: str | None = None
    withdrawals: str | None = None
    """The age of what is known of the publisher's withdrawals; `none`: it is current."""
    files: int | None = None
    """The files that were hashed."""
    tensors: int | None = None
    """The tensors that were looked at."""
    tokens_equal: bool | None = None
    """True if the probe's answer has the same tokens."""
    logits_equal: bool | None = None
    """True if the probe's logits are the same to the bit."""
    same_environment: bool | None = None
    """True if this machine computes as the publisher's does."""
    publishers: int | None = None
    """The other publishers whose fingerprints were compared."""
    trusted: int | None = None
    """Those of them that are trusted."""
    agreeing: int | None = None
    """Those of them within honest noise."""
    intervals: int | None = None
    """The intervals that were computed again."""
    of_intervals: int | None = None
    """All intervals of the document."""
    chance: int | None = None
    """The probability of finding one wrong interval, in millionths."""
    positions: int | None = None
    """The positions that were compared."""
    wrong: int | None = None
    """Those of them that are not within honest noise."""
    worst: int | None = None
    """The largest difference, in millionths of what is allowed, or of what honest caches show."""
    margin: int | None = None
    """The multiple of honest noise up to which a difference counts as noise, in millionths."""
    disputed_with: tuple[str, ...] | None = None
    """The artifacts of others that contradict this one."""
    layer: int | None = None
    """The layer with the largest difference."""
    first: int | None = None
    """The first position, or the begin of the first interval, that is wrong."""
    bitwise: bool | None = None
    """True if what was compared is the same to the bit."""
    read_back: bool | None = None
    """True if the tokens were read from layer 0, as no text was at hand."""

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form, which has no figure that is None, and fractions as such."""
        out: dict[str, Any] = msgspec.to_builtins(self)
        for name in _FRACTIONS:
            if name in out:
                out[name] /= MICRO
        return out


def micro(fraction: float) -> int:
    """Return a fraction in millionths, at most a million times one."""
    return round(min(fraction, 1e6) * MICRO)
