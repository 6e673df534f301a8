"""The answer to how a model writes a conversation: its text, its tokens, and where its parts end."""

from __future__ import annotations

from kvswap.api.result import Result


class PartTokens(Result, frozen=True, kw_only=True):
    """The end of a part of a conversation, in tokens of its text."""

    part: str
    """The kind of part: `system`, `tools` or `message`."""
    message: int
    """The number of the message, from 0."""
    tokens: int
    """The tokens up to its end, those before it included."""


class RenderResult(Result, frozen=True, kw_only=True):
    """A conversation as the model's chat template writes it, without the start of an answer: a document."""

    text: str
    """The document, without the special tokens that the tokenizer puts before every text."""
    document: str
    """The document's digest, `sha256:<hex>`."""
    tokens: int
    parts: list[PartTokens]
    """The ends of system text, tools and messages, in their order."""
    states: bool
    """True if the model keeps states: then readers resume at checkpoints alone."""
    continuation: str | None = None
    """The text that follows for one more question; None: none was given."""

    @property
    def checkpoints(self) -> list[int]:
        """The token counts to hold states at, for readers that share only a part; none where there are no states."""
        return [part.tokens for part in self.parts if part.tokens < self.tokens] if self.states else []
