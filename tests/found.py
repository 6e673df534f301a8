"""Where the test of each module of the package is: `python -m tests.found`, and with figures `… DIRECTORY`.

A module `kvswap/a/b.py` is tested in `tests/a/test_b.py`, or in the file that `found.toml` names.  That file by itself
runs at least half of what the module's functions do.  Without an argument only the names are looked at; a directory is
one that `pytest --covering` has written, and then the halves are checked, and the coverage of each module is shown.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "found.toml"
HALF = 0.5
ELSEWHERE = ("tests/vllm", "tests/llama")  # run in environments of their own, by `make test-vllm` and `-llama`


def modules() -> Iterator[str]:
    """The modules of the package that have functions, as paths from the root."""
    for path in sorted((ROOT / "kvswap").rglob("*.py")):
        if body_lines(path):
            yield str(path.relative_to(ROOT))


def body_lines(path: Path) -> set[int]:
    """The lines on which a statement within a function begins; what an import runs says nothing of tests."""
    lines: set[int] = set()
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            body = function.body[1:] if ast.get_docstring(function) is not None else function.body
            lines |= {node.lineno for top in body for node in ast.walk(top) if isinstance(node, ast.stmt)}
    return lines


def table() -> dict[str, str]:
    """The test file of each module whose test has another name."""
    return {str(module): str(test) for module, test in tomllib.loads(TABLE.read_text()).items()}


def test_of(module: str, named: dict[str, str]) -> str:
    """The file in which a module's test is, whether it exists or not."""
    path = Path(module)
    usual = Path("tests", *path.parent.parts[1:], f"test_{path.stem.strip('_')}.py")
    return named.get(module) or str(usual)


def wrong_names() -> list[str]:
    """What is wrong with the names: modules without a test, and lines of the table that name nothing."""
    named, every = table(), set(modules())
    wrong = [
        f"{module}: no {test_of(module, named)}" for module in every if not (ROOT / test_of(module, named)).exists()
    ]
    wrong += [f"found.toml: there is no {module} to be tested" for module in set(named) - every]
    return sorted(wrong)


def shares(directory: Path) -> dict[str, tuple[dict[str, float], float]]:
    """For each module, which share of its functions each test file runs, and which all of them run."""
    import coverage

    measured = coverage.CoverageData(str(directory / "all"))
    for part in directory.glob("data.*"):
        other = coverage.CoverageData(str(part))
        other.read()
        measured.update(other)
    files, out = measured.measured_files(), {}
    for module in modules():
        lines = body_lines(ROOT / module)
        by_file: dict[str, set[int]] = {}
        for path in (file for file in files if file.endswith("/" + module)):
            for line, contexts in measured.contexts_by_lineno(path).items():
                for context in contexts:
                    by_file.setdefault(context.rpartition("|")[2], set()).add(line)
        ran = set().union(*by_file.values()) & lines
        share = {file: len(seen & lines) / len(lines) for file, seen in by_file.items() if file}
        out[module] = (share, len(ran) / len(lines))
    return out


def main(arguments: list[str]) -> int:
    """Print what is wrong, and with a directory the figures; returns the exit code."""
    wrong = wrong_names()
    if arguments and not wrong:
        named = table()
        for module, (share, every) in shares(Path(arguments[0])).items():
            test = test_of(module, named)
            own = share.get(test, 0.0)
            print(f"{own:4.0%} of {every:4.0%}  {module}  {test}")
            if own < HALF and not test.startswith(ELSEWHERE):
                better = sorted(share, key=lambda name: -share[name])[:3]
                wrong.append(f"{module}: {test} runs {own:.0%}; " + ", ".join(f"{n} {share[n]:.0%}" for n in better))
    for line in wrong:
        print(line, file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
