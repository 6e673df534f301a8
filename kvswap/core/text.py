"""Foreign text made fit for a terminal and a log."""

from __future__ import annotations

from collections.abc import Iterable

_JOINERS = "\u200c\u200d"  # Persian and emoji need them; they move nothing on a terminal


def printable(text: str, keep: str = "") -> str:
    r"""Escape every character that a terminal would obey or that cannot be encoded, but for those in `keep`.

    Control and format characters (escape sequences, direction marks, line ends) and lone surrogates become backslash
    escapes; letters, marks and spaces of every script stay as they are.

    >>> printable("a\x1b]0;title\x07 é")
    'a\\x1b]0;title\\x07 é'
    """
    if text.isprintable():
        return text
    if "\n" in keep and "\n" in text:  # line by line: hardly one of a long table has to be looked at by characters
        return text if text.replace("\n", "").isprintable() else "\n".join(printable(t, keep) for t in text.split("\n"))
    return "".join(c if c in keep or _fits(c) else c.encode("unicode_escape").decode("ascii") for c in text)


def meant(word: str, words: Iterable[str]) -> str:
    """Return a question after the one of these words that a mistyped one is most like, or nothing.

    >>> meant("smolm2-135m", ["smollm2-135m", "qwen3-0.6b"])
    "; did you mean 'smollm2-135m'?"
    """
    from difflib import get_close_matches  # of use for a mistake alone

    like = get_close_matches(word, list(words), n=1)
    return f"; did you mean {like[0]!r}?" if like else ""


def is_printable(text: str) -> bool:
    """Return True if `printable` would leave the text unchanged."""
    return text.isprintable() or all(map(_fits, text))


def _fits(character: str) -> bool:
    if character.isprintable() or character in _JOINERS:
        return True
    import unicodedata

    return unicodedata.category(character) == "Zs"  # spaces: not printable for Python, but for `repr` only
