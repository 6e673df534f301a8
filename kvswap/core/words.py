"""The words for verification levels, where people read them; the codes V0 to V7 are for docs, JSON and `--level`."""

from __future__ import annotations

import re
from collections.abc import Collection

LEVELS = (
    "signature and policy",
    "chunk digests",
    "structure",
    "layer 0 against the tokens",
    "probe",
    "sampled positions",
    "fingerprints of other publishers",
    "full recomputation",
)
"""What is checked at each verification level, by its number."""

STANDINGS = {
    "own": "own",
    "trusted": "by a trusted publisher",
    "verified": "untrusted publisher, verified",
    "unverified": "untrusted publisher, not verified",
    "disputed": "DISPUTED",
    "wrong": "FOUND WRONG, not offered",
    "caught": "its publisher is BANNED",
    "withdrawn": "WITHDRAWN",
    "expired": "EXPIRED",
    "future": "issued in the FUTURE",
}
"""The standing of an artifact here in words, by its name."""


def size(value: float) -> str:
    """Format a number of bytes for people, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return ""


def in_words(text: str) -> str:
    """Replace the codes V0 to V7 in a reason by what they stand for."""
    return re.sub(r"\bV([0-7])\b", lambda found: LEVELS[int(found[1])], text)


def verified(passed: Collection[str], publisher: str, *, trusted: bool) -> str:
    """Say in words what was checked of an artifact, and what was not.

    `passed` holds the codes of the levels that passed; `publisher` is the label or PeerId to show.
    """
    done = [f"signed by {publisher}" + ("" if trusted else ", who is not trusted")]
    done += [
        words
        for code, words in (
            ("V1", "every chunk unchanged"),
            ("V3", "layer 0 is that of its text"),
            ("V5", "sampled positions of every layer computed again"),
            ("V6", "other publishers made the same"),
            ("V7", "all of it computed again"),
        )
        if code in passed
    ]
    if "V7" in passed:
        return ", ".join(done)
    if "V5" in passed:
        left = "the positions that were not sampled"
    elif "V3" in passed:
        left = "the layers above the first"
    else:
        left = "whether it belongs to this text"
    return f"{', '.join(done)}; not checked: {left}"
