"""The answer of `kvswap advise`: prefixes worth publishing, and prompts that break sharing."""

from __future__ import annotations

from kvswap.api.result import Result


class PrefixAdvice(Result, frozen=True, kw_only=True):
    """A prefix that several requests begin with."""

    tokens: int
    """The tokens that they share, in whole blocks."""
    requests: int
    """The requests that begin with it."""
    saved_tokens: int
    """The tokens that publishing it saves beside the prefixes before it in the list: what is computed once is off."""
    messages: int
    """The messages that are wholly in it."""
    line: int
    """The line of the log with the first such request, from 1."""
    ends: str
    """The last characters of it."""
    file: str | None = None
    """The file that its text was written to; None: none was asked for."""


class SharingBreak(Result, frozen=True, kw_only=True):
    """A place in which prompts differ that would be the same but for it."""

    kind: str
    """The kind of difference: `timestamp`, `id`, `number`, `tool order`, `tool text` or `text`."""
    message: int
    """The number of the message it is in, from 0."""
    role: str
    requests: int
    lost_tokens: int
    """The tokens of these requests that come after it, and that an earlier request had as well."""
    line: int
    """The line of the log with the first of them, from 1."""
    before: str
    """The characters before the difference."""
    one: str
    """The text there in that request."""
    other: str
    """The text there in an earlier one."""


class AdviceResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap advise`."""

    model: str
    requests: int
    skipped: int
    """The lines that are no requests that the model's template takes."""
    why_skipped: str | None
    """The problem of the first of them."""
    tokens: int
    """The tokens of all prompts."""
    distinct_tokens: int
    """The tokens that are left when each prefix is counted once."""
    saved_tokens: int
    """The tokens that all prefixes of the list would have saved."""
    prefixes: list[PrefixAdvice]
    breaks: list[SharingBreak]
