"""Which tests are of time: `pytest -m clock` runs all that wait for something, measure, or shorten a limit.

The mark is put by itself, from what a test is written with: it, a fixture that it takes, or a function of its file that
it calls sleeps, polls, reads a clock, ends something after so many seconds, or changes a limit in seconds.  These are
the tests that a busy machine could fail, and the ones to run beside busy loops (README.md).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

WAITS = {"sleep", "until", "_until", "timeout", "wait_for", "fail_after", "move_on_after"}
CHANGES = {"setattr", "__setattr__", "replace"}
READS = {"monotonic", "perf_counter", "thread_time", "process_time"}


def _waits(node: ast.AST) -> bool:
    """Say whether this is a wait, a reading of a clock, or a limit in seconds that is given or changed."""
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    first = node.args[0] if node.args else None
    if name in WAITS:
        return not (isinstance(first, ast.Constant) and first.value == 0)
    if name == "wait":
        return isinstance(first, ast.Constant)
    if name in CHANGES:
        given = [a.value for a in node.args if isinstance(a, ast.Constant)] + [k.arg for k in node.keywords]
        return any(str(value).lower().endswith("_seconds") for value in given)
    return name in READS


@cache
def timed(path: Path) -> frozenset[str]:
    """Return the names of a file's functions that wait or measure, by themselves or by what they call."""
    functions: dict[str, ast.AST] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.setdefault(node.name, node)
    found = {name for name, node in functions.items() if any(map(_waits, ast.walk(node)))}
    used = {name: set(_names(node)) & functions.keys() for name, node in functions.items()}
    while more := {name for name in functions.keys() - found if used[name] & found}:
        found |= more
    return frozenset(found)


def _names(function: ast.AST) -> Iterator[str]:
    """Yield what a function speaks of: names, and the fixtures that are its parameters."""
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the mark."""
    for item in items:
        if isinstance(item, pytest.Function) and {item.originalname, *item.fixturenames} & timed(item.path):
            item.add_marker("clock")
