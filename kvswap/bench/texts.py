"""The documents of an experiment: texts cut to a number of tokens."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kvswap.core.errors import InvalidDocument, UsageError
from kvswap.core.limits import LIMITS

# Long modules of Python's own library: they are on every machine, half prose and half code.
_DEFAULT = ("_pydecimal.py", "argparse.py", "inspect.py", "typing.py", "tarfile.py", "doctest.py")


def read_texts(directory: Path | None) -> list[tuple[str, str]]:
    """Read the text files below a directory as (name, text), the longest first.

    Without a directory they are modules of Python's library.  Raises `UsageError` where there is none.
    """
    if directory is None:
        library = Path(sysconfig.get_paths()["stdlib"])
        paths: Sequence[Path] = [library / name for name in _DEFAULT if (library / name).is_file()]
    else:
        every = (p for p in sorted(directory.rglob("*")) if p.is_file() and p.stat().st_size <= LIMITS.document_bytes)
        paths = sorted(every, key=lambda p: -p.stat().st_size)
    texts = []
    for path in paths:
        try:
            texts.append((path.name, path.read_text()))
        except UnicodeDecodeError:
            continue
    if not texts:
        raise UsageError(f"no text files below {directory}", hint="kvswap bench paper --documents DIR")
    return texts


class Cutter:
    """A cutter of texts by the tokens of a model, whose directory it is given.

    Making one raises `UsageError` where the directory has no `tokenizer.json`.
    """

    def __init__(self, model: Path) -> None:
        from tokenizers import Tokenizer

        path = model / "tokenizer.json"
        if not path.is_file():
            raise UsageError(f"{model} has no tokenizer.json, so texts cannot be cut by tokens")
        self._tokenizer: Any = Tokenizer.from_file(str(path))

    def cut(self, text: str, tokens: int, title: str = "") -> str:
        """Return the beginning of a text that has `tokens` tokens, special ones and a title in front included.

        Raises `InvalidDocument` when the text has fewer.
        """
        head = f"{title}\n\n" if title else ""
        whole = head + text[: 40 * tokens + 1000]
        encoded = self._tokenizer.encode(whole)
        if len(encoded.ids) < tokens:
            raise InvalidDocument(f"the text has {len(encoded.ids)} tokens, {tokens} are needed")
        ends = [end for _, end in encoded.offsets]
        for stop in range(tokens, min(tokens + 8, len(ends)) + 1):  # cutting the text may split one token into several
            piece = whole[: ends[stop - 1]]
            if len(self._tokenizer.encode(piece).ids) == tokens:
                return piece
        return whole[: ends[tokens - 1]]
