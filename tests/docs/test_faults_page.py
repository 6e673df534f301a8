"""The page of faults names tests that exist, and leaves no row open."""

from __future__ import annotations

import ast
import re

import pytest

from tests.support import ROOT

PAGE = ROOT / "docs" / "results" / "faults.md"
NAME = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def rows() -> list[list[str]]:
    """The cells of every row of every table, without the headings."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[0] != "row"]


def functions(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_every_named_test_exists() -> None:
    named = NAME.findall(PAGE.read_text())
    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).is_file()]
    missing += [f"{p}::{n}" for p, n in named if (ROOT / p).is_file() and n and n not in functions(p)]
    assert not missing


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_has_an_outcome(row: list[str]) -> None:
    identifier, _, outcome = row[:3]
    assert outcome.startswith(("mended", "not a fault:", "not mended:")), f"{identifier}: {outcome!r}"
    if outcome.startswith("mended"):
        assert NAME.search(row[3]), f"{identifier} is mended, and no test is named"
