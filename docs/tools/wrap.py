"""Wraps the prose of Markdown files at 120 columns: `python docs/tools/wrap.py [--check] [FILE ...]`.

Paragraphs and items with a longer line are filled anew, all others stay as they are.  Tables, code, headings and
what has no space to be broken at are left alone.  A code span is never broken.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COLUMNS = 120
_FENCE = re.compile(r"\s*(```|~~~)")
_ITEM = re.compile(r"(\s*)([-*+]|\d+[.)])(\s+)")
_APART = re.compile(r"\s*($|\||#|<|>|!\[|\[[^\]]+\]:|---)")
_STARTS_A_BLOCK = re.compile(r"([-+*>]|#{1,6}|\d+[.)]|\|.*|=+|-+)$")
_WORD = re.compile(r"(?:[^\s`]|`[^`]*`)+|`")


def pages() -> list[Path]:
    """The project's Markdown files, but for reports that a benchmark writes."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("manifests/*.md"), *ROOT.glob("tests/*.md"), *ROOT.glob(".github/**/*.md")]
    found += [p for place in ("docs", "examples") for p in (ROOT / place).rglob("*.md")]
    return sorted(p for p in found if "results" not in p.relative_to(ROOT).parts and "site" not in p.parts)


def _blocks(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Runs of lines that belong together, with whether they are prose."""
    prose: list[str] = []
    fenced = False
    for line in lines:
        fence = bool(_FENCE.match(line))
        if fence or fenced or _APART.match(line) or line.startswith("    "):
            if prose and not fence and not fenced and line.startswith("    ") and line.strip():
                prose.append(line)  # it goes on below an item
                continue
            if prose:
                yield True, prose
                prose = []
            yield False, [line]
            fenced = fenced != fence
        elif _ITEM.match(line):
            if prose:
                yield True, prose
            prose = [line]
        else:
            prose.append(line)
    if prose:
        yield True, prose


def _filled(lines: list[str]) -> list[str]:
    item = _ITEM.match(lines[0])
    first = item.group(0) if item else ""
    rest = " " * len(first)
    out, now = [], first.rstrip("\n")
    empty = True
    for word in _WORD.findall(" ".join([lines[0][len(first) :], *lines[1:]])):
        fits = len(now) + (0 if empty else 1) + len(word) <= COLUMNS
        if empty or fits or _STARTS_A_BLOCK.match(word):
            now += word if empty else f" {word}"
        else:
            out.append(now)
            now = rest + word
        empty = False
    return [*out, now]


def wrapped(text: str) -> str:
    """The text, its prose wrapped."""
    out: list[str] = []
    for prose, lines in _blocks(text.splitlines()):
        long = any(len(line) > COLUMNS for line in lines)
        out += _filled(lines) if prose and long else lines
    return "\n".join(out) + "\n"


def main(arguments: list[str]) -> int:
    """Wrap the files in place; with `--check` name those that would change, and exit with 1 if there are any."""
    check = "--check" in arguments
    paths = [Path(a).resolve() for a in arguments if a != "--check"] or pages()
    changed = [path for path in paths if wrapped(path.read_text()) != path.read_text()]
    for path in changed:
        if check:
            print(f"{path.relative_to(ROOT)} has prose of more than {COLUMNS} columns: python docs/tools/wrap.py")
        else:
            path.write_text(wrapped(path.read_text()))
    return 1 if check and changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
