"""Whether a tokenizer that was loaded does what its files say.

The model identity holds the tokenizer's files.  Which class opens them is a label there, a version, or an optional
package that happens to be installed, and some classes put rules of their own in the place of the file's.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from kvswap.model.load import continuation_ids

_FILE = "tokenizer.json"


def departure(tokenizer: Any, text: str) -> str:
    """Say why this tokenizer's tokens of a text are not known to be those of its files; empty where they are."""
    name = type(tokenizer).__name__
    made = _by_file(tokenizer, text)
    if made is None:
        return f"this reader's tokenizer ({name}) has no {_FILE} to be compared with"
    if made != continuation_ids(tokenizer, text):
        return f"this reader's tokenizer ({name}) makes other tokens of the text than its {_FILE} says"
    return ""


def template_of(tokenizer: Any, text: str) -> str | None:
    """Return what a manifest says of a tokenizer that departs from its file; None for one that does not."""
    made = _by_file(tokenizer, text)
    departs = made is not None and made != continuation_ids(tokenizer, text)
    return f"tokenizer class {type(tokenizer).__name__}"[:256] if departs else None


def _by_file(tokenizer: Any, text: str) -> list[int] | None:
    """The tokens that the file makes, without special ones, which other files may say; None without the file."""
    path = Path(tokenizer.name_or_path) / _FILE
    try:
        state = path.stat()
        plain = _opened(str(path), state.st_mtime_ns, state.st_size)
    except Exception:  # noqa: BLE001 - it raises a plain Exception for whatever is wrong with the file
        return None
    return list(plain.encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=2)
def _opened(path: str, changed: int, size: int) -> Any:
    """The file as it is now: opening one of a few megabytes takes a tenth of a second."""
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(path)
    plain.no_truncation()
    plain.no_padding()
    return plain
