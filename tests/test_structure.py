"""The package's shape: no circles among its files, and files and functions that a reader can take in.

What is over a limit is named here with its size, which may only shrink, and its reason.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import kvswap

ROOT = Path(kvswap.__file__).parent
MODULE_LINES = 400
FUNCTION_LINES = 60
PARAMETERS = 8
# Files over MODULE_LINES: (lines, why).
LONG_MODULES: dict[str, tuple[int, str]] = {}
# Functions over FUNCTION_LINES: (lines, why).
LONG_FUNCTIONS: dict[str, tuple[int, str]] = {}
# Functions with more than PARAMETERS: (parameters, why).  Clients and commands have their options from one definition.
MANY_PARAMETERS: dict[str, tuple[int, str]] = {}
OPTIONS = ("cli/", "client/")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, Path]:
    """Module name -> file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ["kvswap", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, names: set[str]) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it, if only for types; a package only where it is named.

    What is compiled (`_fast`, `_scan`) is no file of Python's.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in names:
                    yield whole
                elif base in names and not (ROOT.parent / base.replace(".", "/") / f"{alias.name}.c").exists():
                    yield base


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected parts of more than one module."""
    reach = {name: _reached(graph, name) for name in graph}
    seen: set[str] = set()
    found = []
    for name in sorted(graph):
        if name not in seen and name in reach[name]:
            circle = sorted(other for other in reach[name] if name in reach[other])
            seen.update(circle)
            found.append(circle)
    return found


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    todo = list(graph[start])
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += graph[name]
    return reached


def functions() -> Iterator[tuple[str, Function, bool]]:
    """(file:name, function, whether it is a method) of all."""
    for path in modules().values():
        tree = ast.parse(path.read_text())
        methods = {id(f) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for f in c.body}
        for node in ast.walk(tree):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.name}", node, id(node) in methods


def over(sizes: dict[str, int], limit: int, allowed: dict[str, tuple[int, str]]) -> dict[str, object]:
    """What is over the limit and not allowed, grew, or is allowed for nothing."""
    large = {name: size for name, size in sizes.items() if size > limit}
    grown = {name: size for name, size in large.items() if size > allowed.get(name, (0, ""))[0]}
    idle = dict.fromkeys(allowed.keys() - large.keys(), "is not over the limit any more")
    return {**grown, **idle}


def test_a_circle_is_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"} - {"d"}}
    assert circles(graph) == [["b", "c"]]


def test_no_circles_among_files() -> None:
    names = modules()
    graph = {name: set(imported(ast.parse(path.read_text()), set(names))) - {name} for name, path in names.items()}
    assert circles(graph) == []


def test_modules_are_short() -> None:
    sizes = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in modules().values()}
    assert over(sizes, MODULE_LINES, LONG_MODULES) == {}


def test_functions_fit_a_screen() -> None:
    sizes: dict[str, int] = {}
    for name, node, _ in functions():
        sizes[name] = max(sizes.get(name, 0), (node.end_lineno or 0) - node.lineno + 1)
    assert over(sizes, FUNCTION_LINES, LONG_FUNCTIONS) == {}


def test_functions_have_few_parameters() -> None:
    sizes: dict[str, int] = {}
    for name, node, method in functions():
        arguments = node.args
        count = len([*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs])
        bound = method and not any("staticmethod" in ast.unparse(d) for d in node.decorator_list)
        sizes[name] = max(sizes.get(name, 0), count - bound)
    sizes = {name: size for name, size in sizes.items() if not name.startswith(OPTIONS)}
    assert over(sizes, PARAMETERS, MANY_PARAMETERS) == {}
