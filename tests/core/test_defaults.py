"""Each number that several faces offer is spelt once: looked for in the syntax trees, whatever it is called there."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kvswap.core import defaults
from tests.support import ROOT

MADE = {"sync.py", "base_sync.py"}  # from others, by .ci/unasync
TWICE = {"wave": "one class hands it to the other, and tests give both their own"}
SQL = {"kvswap/store/tables.py": "ROWS_AT_ONCE", "kvswap/core/errors.py": "a status of HTTP"}
STATUS = {"status", "http_status", "error_of"}


def _sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / "kvswap").rglob("*.py")):
        if path.name not in MADE:
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def _number(node: ast.expr | None) -> int | float | None:
    """A literal that is not obvious; small ones and those of a check's bounds are found beside others anyway."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and abs(node.value) >= 10:
        return node.value  # type: ignore[return-value]
    return None


def spelt(tree: ast.Module) -> Iterator[tuple[str, int | float]]:
    """Yield the name and the number of every default: of parameters, fields of classes, and options."""
    for node in ast.walk(tree):
        given: list[tuple[str, ast.expr | None]] = []
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            places = node.args.posonlyargs + node.args.args
            given += [(a.arg, d) for a, d in zip(reversed(places), reversed(node.args.defaults), strict=False)]
            given += [(a.arg, d) for a, d in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
        elif isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    value = field.value
                    parts = (
                        [*value.args, *(k.value for k in value.keywords)] if isinstance(value, ast.Call) else [value]
                    )
                    given += [(field.target.id, part) for part in parts]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "option":
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and str(a.value).startswith("--")]
            given += [
                (str(names[0]).strip("-").replace("-", "_"), k.value)
                for k in node.keywords
                if names and k.arg == "default"
            ]
        yield from ((name, number) for name, value in given if (number := _number(value)) is not None)


@cache
def defaults_of_the_package() -> list[tuple[str, str, int | float]]:
    """(file, name, number) of every default."""
    return [(file, name, number) for file, tree in _sources() for name, number in spelt(tree)]


def test_the_search_finds_each_kind_of_default() -> None:
    tree = ast.parse(
        "def f(a, b=64, *, c: int = 65): ...\n"
        "class S:\n    d: int = 66\n    e: int = checked(range(1, 9), 67)\n"
        "@click.option('--f-g', default=68)\ndef g(f_g): ...\n"
    )
    assert sorted(spelt(tree)) == [("b", 64), ("c", 65), ("d", 66), ("e", 67), ("f_g", 68)]


def test_no_default_is_spelt_twice() -> None:
    found: defaultdict[tuple[str, float], list[str]] = defaultdict(list)
    for name, word, number in defaults_of_the_package():
        found[word, number].append(name)
    twice = {key: places for key, places in found.items() if len(places) > 1 and key[0] not in TWICE}
    assert twice == {}


def test_blocks_and_answers_have_their_length_from_one_place() -> None:
    words = ("block_tokens", "max_tokens", "min_tokens", "headroom", "concurrent", "warm_seconds")
    numbers = {value for name, value in vars(defaults).items() if name.isupper()}
    found = [row for row in defaults_of_the_package() if row[1] in words and row[2] in numbers]
    assert found == []


def test_the_batch_of_a_statement_is_spelt_once() -> None:
    """500 rows, and the 999 parameters it comes from; what HTTP calls 500 is another number."""
    found = []
    for name, tree in _sources():
        if name in SQL:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and not _is_status(node):
                found += [(name, a.lineno) for a in node.args if isinstance(a, ast.Constant) and a.value in (500, 999)]
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                value = node.value
                if isinstance(value, ast.Constant) and value.value in (500, 999):
                    found.append((name, node.lineno))
    assert found == []


def _is_status(node: ast.Call) -> bool:
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return called in STATUS or called == "next"  # the status of an error that has none of its own


def test_the_pages_of_the_api_are_of_that_batch() -> None:
    from kvswap.store.tables import ROWS_AT_ONCE

    assert 2 * ROWS_AT_ONCE > 999 > ROWS_AT_ONCE  # the most that fits, with room for the other parameters
    for name in ("kvswap/daemon/artifacts_api.py", "kvswap/daemon/requests.py", "kvswap/store/records.py"):
        assert "ROWS_AT_ONCE" in (ROOT / name).read_text(), name


def test_the_command_line_and_the_client_say_the_same() -> None:
    import inspect

    from kvswap.cli.commands.ask import ask_command
    from kvswap.client.aio import AsyncClient
    from kvswap.client.sync import Client
    from kvswap.core.settings import Settings

    asked = {option.name: option.default for option in ask_command.params}["max_tokens"]
    assert asked == defaults.ANSWER_TOKENS
    for client in (Client, AsyncClient):
        assert inspect.signature(client.ask).parameters["max_tokens"].default == asked
        assert inspect.signature(client.get_cache).parameters["headroom"].default == defaults.HEADROOM_TOKENS
    assert Settings(home=Path("/x"), models=Path("/x")).block_tokens == defaults.BLOCK_TOKENS
