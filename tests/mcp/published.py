"""What the node of these tests has published, and how the text of an answer is read."""

from __future__ import annotations

from mcp import types

from kvswap.core.ids import document_digest
from tests.support import DOCUMENT

TEXT = DOCUMENT.read_text()[:2_000]
DIGEST = document_digest(TEXT.encode())


def text_of(result: types.CallToolResult) -> str:
    """The text of a tool's answer, which has one block of it."""
    (block,) = result.content
    assert isinstance(block, types.TextContent)
    return block.text
