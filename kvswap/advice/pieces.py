"""Prompts cut into pieces that are tokenised one by one: each new one once, however often it comes again.

A tokenizer cuts a text at its special tokens before anything else, so what stands between two of them makes the same
tokens in every prompt.  Templates put such a token at the ends of messages.  Whether that holds for this tokenizer is
looked at with whole prompts; where it does not, these are tokenised whole.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable
from itertools import pairwise

from kvswap.model.chat import Encode

_LOOKED_AT = 16  # prompts whose tokens are compared


class Pieces:
    """The tokens of pieces of prompts, by their text.  `marks` are the texts of the special tokens."""

    def __init__(self, encode: Encode, marks: Iterable[str]) -> None:
        self._encode = encode
        longest_first = sorted(filter(None, marks), key=len, reverse=True)
        self._at = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._known: dict[str, array[int]] = {}
        self._left = _LOOKED_AT
        self.tokenised = 0
        """Characters that were tokenised."""

    def cut(self, text: str) -> list[str]:
        """Cut a prompt before each special token."""
        if self._at is None:
            return [text]
        starts = [match.start() for match in self._at.finditer(text)]
        return [text[start:end] for start, end in pairwise([0, *starts, len(text)]) if start < end]

    def tokens(self, pieces: list[str]) -> list[array[int]]:
        """Return the tokens of each piece of a prompt."""
        if self._left and self._at is not None:
            self._left -= 1
            whole = array("I", self._encode("".join(pieces)))
            joined: array[int] = array("I")
            for piece in pieces:
                joined += self._tokens(piece)
            if joined != whole:
                self._at = None
                self._known.clear()
        if self._at is None and len(pieces) > 1:
            return [self._tokens("".join(pieces))]
        return [self._tokens(piece) for piece in pieces]

    def _tokens(self, piece: str) -> array[int]:
        found = self._known.get(piece)
        if found is None:
            found = self._known[piece] = array("I", self._encode(piece))
            self.tokenised += len(piece)
        return found
