"""The rules of what counts as a document: UTF-8 text of more than white space, under the size limit.

They are checked before any work is done.
"""

from __future__ import annotations

from kvswap.core.errors import InvalidDocument, UsageError
from kvswap.core.limits import LIMITS
from kvswap.core.text import is_printable, printable

_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def check_size(length: int, name: str = "the document") -> None:
    """Raise `InvalidDocument` for more bytes than the limit.  For files, it is called before reading them."""
    if length > LIMITS.document_bytes:
        raise InvalidDocument(
            f"{name} has {length} bytes, the limit is {LIMITS.document_bytes}",
            cause="no model of today reads so much at once",
            hint="split it",
        )


def check_document(data: bytes, name: str = "the document") -> str:
    """Return the text of a document, given its bytes.  Raises `InvalidDocument` saying what is wrong with `name`."""
    check_size(len(data), name)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        encoding = _MARKS.get(data[:2], "ENCODING")
        pdf = data.startswith(b"%PDF")
        raise InvalidDocument(
            f"{name} is not UTF-8 text (byte {error.start})",
            cause="it is a PDF" if pdf else "a binary file, or another encoding",
            hint=f"pdftotext {name} {name}.txt" if pdf else f"iconv -f {encoding} -t UTF-8 {name}",
        ) from error
    _check_content(text, name)
    return text


def check_text(text: str, name: str = "the document") -> bytes:
    """Return the UTF-8 bytes of a document that is given as text, by the rules of `check_document`.

    Raises `InvalidDocument` saying what is wrong with `name`.
    """
    check_unicode(text, name, InvalidDocument)
    data = text.encode()
    check_size(len(data), name)
    _check_content(text, name)
    return data


def check_unicode(text: str, name: str, kind: type[UsageError] = UsageError) -> str:
    """Return a text unchanged if it can be encoded as UTF-8.  Raises `kind` for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise kind(
            f"{name} is not Unicode text (a lone surrogate, character {error.start})",
            cause="bytes that are not UTF-8 were given on the command line, or text was cut within a character",
            hint="give it in UTF-8",
        ) from error
    return text


def check_written(text: str, name: str) -> str:
    """Return a text unchanged if it may be signed and so shown on the terminals of others.

    Raises `UsageError` for control and format characters.  What was signed with them earlier stays readable.
    """
    check_unicode(text, name)
    if not is_printable(text):
        raise UsageError(f"{name} has control characters: {printable(text)[:80]!r}", cause="a typing error")
    return text


def _check_content(text: str, name: str) -> None:
    if not text.strip():
        raise InvalidDocument(f"{name} is empty", cause="no text, or white space alone", hint=f"look into {name}")
    if "\0" in text:
        wide = len(text) > 3 and max(text[start::2].count("\0") for start in (0, 1)) > len(text) // 4
        raise InvalidDocument(
            f"{name} holds NUL bytes",
            cause="UTF-16 text, by its looks" if wide else "a binary file",
            hint=f"iconv -f UTF-16{'BE' if text[0] == chr(0) else 'LE'} -t UTF-8 {name}" if wide else "give it as text",
        )
