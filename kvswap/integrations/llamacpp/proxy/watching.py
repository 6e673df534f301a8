"""What is read of an answer while it passes through: how many tokens of the prompt the server had cached."""

from __future__ import annotations

import re

_KEPT = 1 << 14  # bytes of the beginning and of the end
# In the text of an answer a quotation mark has a backslash before it, so that none of these can be in it.
_CACHED = re.compile(rb'"(?:cache_n|cached_tokens|cache_read_input_tokens)": ?(\d{1,9})')
_TIMINGS = re.compile(rb'"(cache_n|prompt_n|predicted_n)": ?(\d{1,9})')


class AnswerWatcher:
    """The beginning and the end of an answer, of which the server's own counts are read."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self._first = bytearray()
        self._last = bytearray()

    def answered(self, status: int) -> None:
        """Take note that the server has begun to answer."""
        self.status = status

    def passed(self, data: bytes) -> None:
        """Take note of bytes of the answer."""
        if len(self._first) < _KEPT:
            self._first += data[:_KEPT]
        self._last += data[-_KEPT:]
        if len(self._last) > 2 * _KEPT:
            del self._last[:-_KEPT]

    def finished(self) -> None:
        """Take note that the answer has come to its own end."""
        self.ended = True

    @property
    def cached(self) -> int | None:
        """The tokens of the prompt that the server had cached; None if it does not say."""
        found = _CACHED.findall(self._last) or _CACHED.findall(self._first)
        return int(found[-1]) if found else None

    @property
    def tokens(self) -> int | None:
        """The tokens of prompt and answer together; None if the server does not say."""
        counts = {name: int(number) for name, number in _TIMINGS.findall(self._last)}
        return sum(counts.values()) if len(counts) == 3 else None
