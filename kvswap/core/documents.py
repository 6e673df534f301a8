"""What counts as a document: non-empty UTF-8 text under the size limit.  Asked before any work."""

from __future__ import annotations

from kvswap.core.errors import InvalidDocument
from kvswap.core.limits import LIMITS


def check_size(length: int, name: str = "the document") -> None:
    """Raise `InvalidDocument` for more bytes than the limit; for files, before reading them."""
    if length > LIMITS.document_bytes:
        raise InvalidDocument(
            f"{name} has {length} bytes, the limit is {LIMITS.document_bytes}",
            cause="no model of today reads so much at once",
            hint="split it",
        )


def check_document(data: bytes, name: str = "the document") -> str:
    """The text of a document.  Raises `InvalidDocument` saying what is wrong with `name`."""
    check_size(len(data), name)
    if not data.strip():
        raise InvalidDocument(f"{name} is empty")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidDocument(
            f"{name} is not UTF-8 text (byte {error.start})",
            cause="a binary file, or another encoding",
            hint=f"iconv -t utf-8 {name}",
        ) from error
    if "\0" in text:
        raise InvalidDocument(f"{name} holds NUL bytes", cause="a binary file")
    return text
