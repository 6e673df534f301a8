"""Draws the walks of docs/walks.json: `python docs/tools/walks.py [--check]` makes docs/walks.svg and the list of files
in docs/architecture.md.  `python -m tests.walks` traces them anew.

In the picture a row is a file and a line is a use case, which stops at the files that it enters, in their order.  Files
are sorted so that every line goes down; a ring is a file that is entered more than once.  The parts of the node, which
any step may use, are below.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent
TRACED = DOCS / "walks.json"
PICTURE = DOCS / "walks.svg"
PAGE = DOCS / "architecture.md"
BEGIN, END = "<!-- walks: made by docs/tools/walks.py -->", "<!-- /walks -->"

# Of each use case: what it is called, its folder, what was traced.
USE_CASES = {
    "publish": ("publish", "exchange", "a document that is not published yet"),
    "fetch": ("fetch", "exchange", "an artifact that one peer has"),
    "ask": ("ask", "exchange", "a question about a document in the store"),
    "vllm": ("load in vLLM", "integrations/vllm", "a prompt that begins with a published document"),
}
# Why a file is entered again, where that is inherent; a test holds that nothing else is.
WHY = {
    ("fetch", "discovery/candidates"): "which asks for the next manifests while one is judged",
    ("fetch", "node/peers"): "where each step that chooses among peers asks how they did, or what they charge",
    ("fetch", "node/neighbours"): "which has what peers say of themselves, as prices",
    ("fetch", "node/background"): "where whatever goes on beside the request is started",
    ("fetch", "transfer/downloader"): "which is told at the end how long all of it took",
    ("fetch", "transfer/flights"): "which has by then what came, and from whom",
    ("fetch", "transfer/schedule"): "which has by then what is left",
    ("vllm", "engine"): "which both halves ask what the engine can take, in vLLM's two processes",
}

Walks = dict[str, dict[str, Any]]

WIDTH, ROW, HEAD, LEFT, STEP = 860, 25, 58, 350, 190
STOP, RING = 9.5, 12
# Of each line: its colour in light and in dark.
COLOURS = {
    "publish": ("#b45309", "#f0a55b"),
    "fetch": ("#2563c9", "#7fb0ff"),
    "ask": ("#0f8a5f", "#4fd1a0"),
    "vllm": ("#8b3fc7", "#cd9bf5"),
}


def load() -> Walks:
    """The walks that are written down."""
    return json.loads(TRACED.read_text()) if TRACED.exists() else {}


def save(walks: Walks) -> None:
    """Write the walks down."""
    kept = {name: walks[name] for name in USE_CASES if name in walks}
    TRACED.write_text(json.dumps(kept, indent=1) + "\n")


def merged(lists: list[list[str]]) -> list[str]:
    """All the files, in an order that agrees with each list as far as the lists agree with each other."""
    after: dict[str, set[str]] = {name: set() for files in lists for name in files}  # file -> what comes before it
    for files in lists:
        for before, name in pairwise(files):
            after[name].add(before)
    order: list[str] = []
    while after:
        free = [name for name, waits in after.items() if not waits - set(order)]
        # The one that goes on from the last file if there is one; where the lists contradict each other, any.
        last = set(order[-1:])
        name = next((n for n in free if last & after[n]), None) or next(iter(free or after))
        order.append(name)
        del after[name]
    return order


def picture(walks: Walks) -> str:
    """The picture, as SVG for light and dark."""
    folders: dict[str, list[str]] = {}
    for name in walks:
        folders.setdefault(USE_CASES[name][1], []).append(name)
    parts: list[str] = []
    y = 18.0
    for folder, names in folders.items():
        parts.append(f'<text class="folder" x="24" y="{y + 32}">kvswap/{folder}/</text>')
        steps = merged([[file for file in walks[name]["files"] if not is_part(file)] for name in names])
        used = merged([[file for file in walks[name]["files"] if is_part(file)] for name in names])
        columns = {name: LEFT + STEP * number for number, name in enumerate(names)}
        parts += [_head(name, x, y) for name, x in columns.items()]
        rows, y = _rows(steps, y + HEAD, parts)
        for name, x in columns.items():
            parts += _line(name, walks[name], x, rows)
        if used:
            parts.append(f'<text class="folder" x="24" y="{y + 30}">the parts of a node that they use</text>')
            rows, y = _rows(used, y + 40, parts)
            for name, x in columns.items():
                for file in walks[name]["files"]:
                    parts += _dot(name, x, rows[file], file in walks[name]["again"]) if file in rows else []
        y += 26
    at = f'cx="34" cy="{y:g}"'
    parts.append(f'<circle class="ring fetch" {at} r="{RING}"/><circle class="stop fetch" {at} r="{STOP}"/>')
    legend = "is entered more than once, for the reason that is given below"
    parts.append(f'<text class="folder" x="58" y="{y + 5:g}">{legend}</text>')
    said = "; ".join(f"{USE_CASES[name][0]}: {', '.join(walk['files'])}" for name, walk in walks.items())
    body = "\n".join(parts)
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 28:g}" font-family="system-ui, sans-serif" \
font-size="14" role="img" aria-label="The files that each use case enters, in order. {said}">
<style>
{_style()}
</style>
{body}
</svg>
"""


def is_part(file: str) -> bool:
    """Whether a file is of a part of the node, which any step may use, and no step itself."""
    return file.startswith("node/")


def _style() -> str:
    light = [f"  .{name} {{ stroke: {one} }} .{name}-text {{ fill: {one} }}" for name, (one, _) in COLOURS.items()]
    dark = [f"    .{name} {{ stroke: {one} }} .{name}-text {{ fill: {one} }}" for name, (_, one) in COLOURS.items()]
    return "\n".join(
        [
            "  text { fill: #1b2436 } .folder, .small { fill: #5b6a86 } .small { font-size: 12px }",
            "  .band { fill: #eff2f8 } .line { stroke-width: 3; fill: none }",
            "  .stop { stroke-width: 2; fill: #ffffff } .ring { stroke-width: 1.5; fill: #ffffff }",
            "  .number { font-size: 11px; font-weight: 600 } .head { font-weight: 600 }",
            *light,
            "  @media (prefers-color-scheme: dark) {",
            "    text { fill: #e6ebf5 } .folder, .small { fill: #a9b6cf } .band { fill: #1b2130 }",
            "    .stop, .ring { fill: #10141d }",
            *dark,
            "  }",
        ]
    )


def _rows(files: list[str], top: float, parts: list[str]) -> tuple[dict[str, float], float]:
    """Add a row for each file from `top` on; returns the heights of their middles, and of the end."""
    rows = {file: top + ROW * (number + 0.5) for number, file in enumerate(files)}
    for number, (file, y) in enumerate(rows.items()):
        folder, _, stem = file.rpartition("/")
        name = f'<tspan class="folder">{folder + "/" if folder else ""}</tspan>{stem}'
        if number % 2 == 0:
            box = f'x="14" y="{y - ROW / 2:g}" width="{WIDTH - 28}" height="{ROW}" rx="5"'
            parts.append(f'<rect class="band" {box}/>')
        parts.append(f'<text x="24" y="{y + 5:g}">{name}</text>')
    return rows, top + ROW * len(files)


def _head(name: str, x: float, y: float) -> str:
    called, _, what = USE_CASES[name]
    lines = [what[: what.index(" ", 16)], what[what.index(" ", 16) + 1 :]] if len(what) > 26 else [what]
    small = "".join(
        f'<text class="small" x="{x}" y="{y + 34 + 15 * number:g}" text-anchor="middle">{line}</text>'
        for number, line in enumerate(lines)
    )
    return f'<text class="head {name}-text" x="{x}" y="{y + 14:g}" text-anchor="middle">{called}</text>{small}'


def _line(name: str, walk: dict[str, Any], x: float, rows: dict[str, float]) -> list[str]:
    """The line of a use case through its steps, numbered."""
    steps = [file for file in walk["files"] if file in rows]
    heights = [rows[file] for file in steps]
    parts = [f'<path class="line {name}" d="M{x} {min(heights):g} V{max(heights):g}"/>']
    for number, file in enumerate(steps, 1):
        y = rows[file]
        if file in walk["again"]:
            parts.append(f'<circle class="ring {name}" cx="{x}" cy="{y:g}" r="{RING}"/>')
        parts.append(f'<circle class="stop {name}" cx="{x}" cy="{y:g}" r="{STOP}"/>')
        parts.append(f'<text class="number {name}-text" x="{x}" y="{y + 4:g}" text-anchor="middle">{number}</text>')
    return parts


def _dot(name: str, x: float, y: float, again: bool) -> list[str]:
    """The mark of a node's part that a use case uses, with a ring where it is entered again."""
    ring = [f'<circle class="ring {name}" cx="{x}" cy="{y:g}" r="{STOP}"/>'] if again else []
    return [*ring, f'<circle class="dot {name}-text" cx="{x}" cy="{y:g}" r="5"/>']


def text(walks: Walks) -> str:
    """The list for the page."""
    lines = []
    for name, walk in walks.items():
        called, room, what = USE_CASES[name]
        files = " → ".join(f"`{file}`" for file in walk["files"])
        lines.append(f"* **{called}** ({what}; `{room}/`): {files}.")
        again = "; ".join(f"`{file}`, {WHY[name, file]}" for file in walk["again"])
        lines += [f"  Entered more than once: {again}."] if again else []
    return "\n".join(lines)


def page(walks: Walks, old: str) -> str:
    """The page with the list in its place; wrapped as all pages are."""
    sys.path.insert(0, str(Path(__file__).parent))
    import wrap

    begin, end = old.index(BEGIN) + len(BEGIN), old.index(END)
    return str(wrap.wrapped(f"{old[:begin]}\n\n{text(walks)}\n\n{old[end:]}"))


def main(check: bool) -> int:
    """Write the picture and the list, or with `check` say whether they are as they would be written."""
    walks = load()
    made = {PICTURE: picture(walks), PAGE: page(walks, PAGE.read_text())}
    wrong = [path for path, content in made.items() if not path.exists() or path.read_text() != content]
    for path in wrong:
        if check:
            print(f"{path.name} is not what docs/walks.json makes: python docs/tools/walks.py", file=sys.stderr)
        else:
            path.write_text(made[path])
    return bool(check and wrong)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
