"""The comparison of a loaded tokenizer with its files.

The model identity covers the tokenizer's files.  Which class loads them depends on a label there, a version, or an
optional package that happens to be installed, and some classes replace the file's rules by their own.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from kvswap.model.load import continuation_ids

_FILE = "tokenizer.json"


def departure(tokenizer: Any, text: str) -> str:
    """Return why this tokenizer's tokens of a text may not be those of its files, in words; empty if they are."""
    name = type(tokenizer).__name__
    made = _by_file(tokenizer, text)
    if made is None:
        return f"this reader's tokenizer ({name}) has no {_FILE} to be compared with"
    if made != continuation_ids(tokenizer, text):
        return f"this reader's tokenizer ({name}) makes other tokens of the text than its {_FILE} says"
    return ""


def template_of(tokenizer: Any, text: str) -> str | None:
    """Return the manifest's note for a tokenizer that departs from its file, or None for one that does not."""
    made = _by_file(tokenizer, text)
    departs = made is not None and made != continuation_ids(tokenizer, text)
    return f"tokenizer class {type(tokenizer).__name__}"[:256] if departs else None


def _by_file(tokenizer: Any, text: str) -> list[int] | None:
    """Return the tokens by the tokenizer file, without special tokens, or None without the file.

    Special tokens are left out because other files may set them.
    """
    path = Path(tokenizer.name_or_path) / _FILE
    try:
        state = path.stat()
        plain = _opened(str(path), state.st_mtime_ns, state.st_size)
    except Exception:  # noqa: BLE001 - it raises a plain Exception for whatever is wrong with the file
        return None
    return list(plain.encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=2)
def _opened(path: str, changed: int, size: int) -> Any:
    """Load the file in its present state, cached, as loading one of a few megabytes takes a tenth of a second."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(path)
    plain.no_truncation()
    plain.no_padding()
    return plain
