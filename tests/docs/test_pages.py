"""Pages are wrapped, what is made from code is current, and no link within the project leads nowhere."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import ROOT


def tool(name: str) -> ModuleType:
    """A program of `docs/tools`, as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_tools_{name}", ROOT / "docs" / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


wrap = tool("wrap")


def test_prose_is_wrapped() -> None:
    long = [str(page.relative_to(ROOT)) for page in wrap.pages() if wrap.wrapped(page.read_text()) != page.read_text()]
    assert not long, "python docs/tools/wrap.py"


def test_wrapping_changes_no_word_and_is_done_once() -> None:
    words = " ".join(f"word{n} `a span of code {n}`" for n in range(40))
    text = f"# A heading {words}\n\n1. {words}\n   and - more\n\n```sh\n{words}\n```\n\n| {words} |\n\nshort\nlines\n"
    made = wrap.wrapped(text)
    assert made.split() == text.split() and wrap.wrapped(made) == made
    item = made[made.index("1. ") : made.index("```")].splitlines()
    assert max(map(len, item)) <= 120 and all(line.count("`") % 2 == 0 for line in item)
    assert f"```sh\n{words}\n```" in made and f"| {words} |" in made and made.endswith("\nshort\nlines\n")


def test_the_page_of_the_command_line_is_what_help_says() -> None:
    made = tool("cli_page")
    assert made.PAGE.read_text() == made.page(), "python docs/tools/cli_page.py"
    assert set(made.exit_codes()) == {0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 130}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    plain = [re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", h) for h in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"[^\w -]", "", h.strip().lower()).replace(" ", "-") for h in plain}


@pytest.mark.parametrize("page", wrap.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```|`[^`\n]+`", "code", page.read_text(), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^()\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            broken.append(target)
    assert not broken


def test_the_readme_is_short_and_shows_a_real_run() -> None:
    readme = (ROOT / "README.md").read_text()
    made = tool("readme")
    shown = readme[readme.index(made.BEGIN) : readme.index(made.END)]
    assert len(readme.split()) < 1500
    assert len(re.findall(r"^(?:ada|bob)\$ kvswap ", shown, re.M)) == 5
    assert "make demo" in readme and "make test" in readme


def test_every_line_of_the_tutorial_is_of_a_machine_or_meant_to_be_read() -> None:
    """`make test-docs` runs what is titled with a machine; `shell` is what it cannot run."""
    page = (ROOT / "docs" / "tutorials" / "two-laptops.md").read_text()
    runner = tool("run_tutorial")
    assert set(re.findall(r"^```(\S.*)$", page, re.M)) == {'sh title="ada"', 'sh title="bob"', "shell"}
    typed = [commands for machine, commands in runner.blocks(page) if machine]
    assert len(typed) == page.count("```sh title=") and sum(map(len, map(str.splitlines, typed))) >= 12
