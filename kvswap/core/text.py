"""Text of others, made fit for a terminal and a log."""

from __future__ import annotations


def printable(text: str, keep: str = "") -> str:
    """Escape every character that is not printable, but for those in `keep`.

    Control and format characters (escape sequences, direction marks) and lone surrogates become backslash escapes;
    letters of every script stay as they are.

    >>> printable("a\\x1b]0;title\\x07 é")
    'a\\\\x1b]0;title\\\\x07 é'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)


def is_printable(text: str) -> bool:
    """Tell whether nothing in `text` would be escaped by `printable`."""
    return text.isprintable()
