"""Hooks of mkdocs: pages that lie outside `docs/` become part of the site, and links between all of them hold.

The README is the site's first page.  A link to a file that is no page, such as a source file, becomes its name; one to
a file that does not exist ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
ALSO = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "manifests/FORMAT.md",
    "manifests/ORIGIN.md",
    "tests/README.md",
    "examples/share.md",
    "examples/vllm/README.md",
)
PLACES = {"README.md": "index.md", **{name: f"project/{name}" for name in ALSO}}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.M | re.S)


def _source_of(page: str) -> str:
    """Where a page of the site lies in the repository."""
    return next((source for source, place in PLACES.items() if place == page), f"docs/{page}")


def _site_of(source: str) -> str | None:
    """Where a file of the repository lies in the site; None: it is not there."""
    if source in PLACES:
        return PLACES[source]
    return source.removeprefix("docs/") if source.startswith("docs/") and "docs/tools/" not in source else None


def linked(text: str, page: str) -> str:
    """The text of a page, with links as they lead from its place in the site.  Raises `PluginError`."""
    source = _source_of(page)

    def link(found: re.Match[str]) -> str:
        mark, label, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found.group(0)
        path, _, anchor = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / there).exists():
            raise PluginError(f"{source}: the link to {target} leads nowhere")
        place = _site_of(there)
        if place is None or (ROOT / there).is_dir():
            return f"`{there}`" if label.strip("`") in (there, path) else label
        leads = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{mark}[{label}]({leads}{'#' + anchor if anchor else ''})"

    held: list[str] = []

    def hold(found: re.Match[str]) -> str:
        held.append(found.group(0))
        return f"\0{len(held) - 1}\0"

    plain = _CODE.sub(hold, text)  # nothing in code is a link
    return re.sub("\0(\\d+)\0", lambda m: held[int(m.group(1))], _LINK.sub(link, plain))


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside."""
    for source, place in PLACES.items():
        files.append(File.generated(config, place, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put the links of a page right."""
    return linked(markdown, page.file.src_uri)
