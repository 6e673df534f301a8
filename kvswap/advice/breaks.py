"""The causes that keep prompts from sharing a prefix: a time, an id or a number early in them, tools in another order.

A prompt's pieces are compared once as they are and once with all that changes from request to request left out.  Where
the second way finds more in common with earlier prompts, the difference is what was lost, and the first piece that is
not the same says where.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvswap.core.ids import blake3_digest
from kvswap.model.chat import alike

_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_CHANGING = re.compile(
    r"(?P<id>\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"
    r"|\b(?=[0-9a-zA-Z_-]*\d)(?=[0-9a-zA-Z_-]*[a-zA-Z])[0-9a-zA-Z]+(?:[_-][0-9a-zA-Z]+)*(?<=[0-9a-zA-Z_-]{16})\b)"
    r"|(?P<timestamp>\b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:?\d\d)?"
    r"|\b\d{1,2}:\d\d(?::\d\d)?(?: ?[AaPp][Mm])?\b"
    rf"|\b(?:\d{{1,2}} )?(?:{_MONTHS})[a-z]*\.? \d{{1,2}}?,? ?(?:\d{{4}})?\b"
    rf"|\b\d{{1,2}} (?:{_MONTHS})[a-z]* \d{{4}}\b"
    r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b|\b1[5-9]\d{8}(?:\d{3})?\b)"
    r"|(?P<number>\d+)"
)
_SHOWN = 40  # characters of a text before a difference, and of what differs
_PLACES = 1_000  # where prompts differ; of more, the first are kept


@dataclass(frozen=True, slots=True)
class CutPrompt:
    """A prompt in pieces: as they are, and as they are `compared`, with the tools as an earlier prompt had them.

    `ends`: the tokens up to the end of each.  `tools`: how its tools differ from the earlier ones, or an empty text.
    """

    line: int
    pieces: Sequence[str]
    compared: Sequence[str]
    ends: Sequence[int]
    messages: Sequence[Mapping[str, Any]]
    tools: str = ""

    def message_of(self, piece: int) -> int:
        """Return the number of the message that a piece has the text of, or goes before."""
        number = 0
        for text in self.pieces[:piece]:
            content = str(self.messages[number].get("content") or "").strip()
            if content and content in text and number + 1 < len(self.messages):
                number += 1
        return number


@dataclass(slots=True)
class Break:
    """A place in which prompts differ, with what it cost so far."""

    kind: str
    message: int
    role: str
    line: int
    before: str
    one: str
    other: str
    requests: int = 0
    lost: int = 0


class Breaks:
    """The places at which prompts stopped to share what they have in common but for a detail."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}  # chain of pieces without what changes -> the first piece as it was
        self._plain: dict[str, bytes] = {}  # piece -> its digest without what changes
        self._places: dict[tuple[str, int, str], Break] = {}

    def add(self, prompt: CutPrompt, shared: int) -> None:
        """Take a prompt of which an earlier one had the first `shared` tokens as well."""
        chain, alike_until = b"", 0
        links: list[bytes] = []
        for piece in prompt.compared:
            chain = blake3_digest(chain + self._without(piece))
            links.append(chain)
        for link, end in zip(links, prompt.ends, strict=True):
            if link not in self._seen:
                break
            alike_until = end
        if alike_until > shared:
            number = next(n for n, end in enumerate(prompt.ends) if end > shared)
            place = self._place(prompt, number, self._seen[links[number]])
            place.lost += alike_until - shared
            place.requests += 1
        for link, piece in zip(links, prompt.pieces, strict=True):
            self._seen.setdefault(link, piece)

    def _without(self, piece: str) -> bytes:
        found = self._plain.get(piece)
        if found is None:
            plain = _CHANGING.sub(lambda match: f"\0{match.lastgroup}", piece)
            found = self._plain[piece] = blake3_digest(plain.encode())
        return found

    def _place(self, prompt: CutPrompt, number: int, other: str) -> Break:
        """Return the place in which a piece of a prompt differs from the same one of an earlier prompt."""
        piece = prompt.pieces[number]
        at = alike(piece, other)
        changing = next((match for match in _CHANGING.finditer(piece) if match.end() >= at), None)
        kind = prompt.tools or (str(changing.lastgroup) if changing and changing.start() <= at else "text")
        start = changing.start() if changing and kind == changing.lastgroup else at
        before = piece[max(0, start - _SHOWN) : start]
        key = (kind, number, "" if prompt.tools else _CHANGING.sub("", before))
        place = self._places.get(key)
        if place is None:
            shown = slice(start, at + _SHOWN)
            message = prompt.message_of(number)
            role = str(prompt.messages[message].get("role"))
            place = Break(kind, message, role, prompt.line, before, piece[shown], other[shown])
            if len(self._places) < _PLACES:
                self._places[key] = place
        return place

    def worst(self, least: int, most: int) -> list[Break]:
        """Return the places that lost at least so many tokens, the most costly first."""
        found = sorted(self._places.values(), key=lambda place: -place.lost)
        return [place for place in found if place.lost >= least][:most]
