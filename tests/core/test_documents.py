from __future__ import annotations

import pytest

from kvswap.core.documents import check_document
from kvswap.core.errors import InvalidDocument
from kvswap.core.limits import LIMITS


def test_text_is_returned_as_it_is() -> None:
    for text in ("x", "Grüße\r\n\tend\n", "\ufeffwith a mark", "\U0001f600"):
        assert check_document(text.encode()) == text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b" \n\t", "empty"),
        (b"\xff\xfe\0a", "not UTF-8"),
        (b"ok then \x80", "byte 8"),
        (b"a\0b", "NUL"),
        (b"\xed\xa0\x80", "not UTF-8"),  # a surrogate
        (b"x" * (LIMITS.document_bytes + 1), "limit"),
    ],
)
def test_everything_else_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(InvalidDocument, match=says) as caught:
        check_document(data, "file.txt")
    assert caught.value.message.startswith("file.txt")


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ("plain words".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 f"),
        ("plain words".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 f"),
        ("words with a mark".encode("utf-16"), "iconv -f UTF-16 -t UTF-8 f"),
        (b"\0", "give it as text"),
        (b"a word, and one \0 byte", "give it as text"),
        (b"%PDF-1.7\n%\xe2\xe3", "pdftotext f f.txt"),
        (b"caf\xe9", "iconv -f ENCODING -t UTF-8 f"),
    ],
)
def test_the_hint_is_for_what_it_looks_like(data: bytes, hint: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        check_document(data, "f")
    assert caught.value.hint == hint
