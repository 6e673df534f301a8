"""Branch coverage before and after, module by module: `python -m tests.coverage_tables COMMIT [TEST …]`.

Checks out the commit and HEAD side by side, runs all tests of each (or those that are named) with every Python process
measured, and writes a table of each side.  A module of now is compared with the one that it came from: git's renames,
else the module of before that shares most of its lines.  What is lower now ends it with code 1.  Both sides together
take three times as long as `make test-all` twice; nothing of the working tree is used or changed.

Processes are measured from a line in the environment's own start-up, not by what a test passes on, so that daemons,
model processes and command lines count whatever their environment; forked ones (`tests/warm.py`) as well.  A process
that is killed has told nothing, on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOGETHER, ALONE = "not model and not alone", "model or alone"  # in two workers, and one after the other
SAID = 12  # a line shorter than this says nothing of where it came from

# Written into each environment.  A `.pth` file is run by every process before anything else.
START = """
import atexit, os, sys

_now = [None]


def _begin():
    import coverage

    _now[0] = coverage.Coverage(
        data_file={data!r}, data_suffix=True, branch=True, source=[{package!r}], config_file=False, messages=False
    )
    _now[0].set_option("run:disable_warnings", ["no-data-collected", "module-not-measured", "module-not-imported"])
    _now[0].start()


def _save():
    measuring, _now[0] = _now[0], None
    if measuring is not None:
        measuring.stop()
        measuring.save()


def _again():
    if _now[0] is not None:
        _now[0].stop()
        _begin()


def _leave(code, leave=os._exit):
    _save()
    leave(code)


os._exit = _leave
_begin()
atexit.register(_save)
os.register_at_fork(after_in_child=_again)
"""


@dataclass(frozen=True)
class Covered:
    """Lines and branches of a module, and how many of them ran."""

    lines: int
    lines_run: int
    branches: int
    branches_run: int

    @property
    def share(self) -> float:
        """The part that ran, of lines and branches together, as coverage.py counts."""
        every = self.lines + self.branches
        return (self.lines_run + self.branches_run) / every if every else 1.0


@dataclass(frozen=True)
class Side:
    """One checkout with an environment of its own."""

    name: str
    commit: str
    home: Path

    @property
    def tree(self) -> Path:
        """The checkout."""
        return self.home / "tree"

    def prepare(self, base: Path) -> None:
        """Check the commit out, and make an environment with the packages of `base` that measures its processes."""
        run("git", "worktree", "add", "-q", "--force", "--detach", str(self.tree), self.commit, cwd=ROOT)
        run(str(base), "-m", "venv", "--without-pip", str(self.home / "env"))
        (packages,) = (self.home / "env" / "lib").glob("python3*/site-packages")
        (packages / "a_checkout.pth").write_text(f"{self.tree}\n")
        ask = "import sys; print(*[p for p in sys.path if p.endswith('-packages')], sep='\\n')"
        where = subprocess.run([str(base), "-c", ask], cwd="/", capture_output=True, text=True, check=True).stdout
        (packages / "z_base.pth").write_text(f"{where}import measured_process\n")
        (self.home / "data").mkdir()
        (packages / "measured_process.py").write_text(
            START.format(data=str(self.home / "data" / "part"), package=str(self.tree / "kvswap"))
        )
        build = "from setuptools import setup; setup()"
        run(str(base), "-c", build, "-q", "build_ext", "--inplace", cwd=self.tree)  # its own C parts

    def test(self, python: Path, chosen: list[str], *more: str) -> int:
        """Run tests; what fails is told and does not end the measuring."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "KVSWAP_COVERING"))}
        command = [str(python), "-m", "pytest", *chosen, *more, "-p", "no:cacheprovider"]
        print(f"== {self.name}: {' '.join(command[3:])}", flush=True)
        return subprocess.run(command, cwd=self.tree, env=environment).returncode

    def measure(self, chosen: list[str]) -> list[int]:
        """Run all tests, or the chosen ones: the exit codes of pytest (5: there were none)."""
        python = self.home / "env" / "bin" / "python"
        given = chosen or ["tests", "kvswap"]
        if not (chosen and all(c.startswith("tests/vllm") for c in chosen)):
            codes = [self.test(python, given, "-n", "2", "--dist", "worksteal", "-m", TOGETHER)]
            codes.append(self.test(python, given, "-m", ALONE))
        vllm = ROOT / ".venv-vllm" / "bin" / "python"
        if vllm.exists() and (not chosen or any(c.startswith("tests/vllm") for c in chosen)):
            other = Side(self.name, self.commit, self.home / "vllm")
            other.home.mkdir()
            other.prepare(vllm)
            codes.append(other.test(other.home / "env" / "bin" / "python", ["tests/vllm"]))
        return codes

    def result(self) -> dict[str, Covered]:
        """Put all parts together: what ran of each module of the package."""
        import coverage

        parts = [str(path) for path in self.home.rglob("data/part.*")]
        config = self.home / "coverage.ini"  # both checkouts are the same one
        config.write_text(f"[paths]\nkvswap =\n    {self.tree}/kvswap\n    {self.home}/vllm/tree/kvswap\n")
        measuring = coverage.Coverage(str(self.home / "all"), branch=True, config_file=str(config), messages=False)
        measuring.combine(parts, keep=True)
        report = self.home / "report.json"
        measuring.json_report(outfile=str(report), ignore_errors=True)
        out = {}
        for path, row in json.loads(report.read_text())["files"].items():
            module = "kvswap/" + str(Path(path)).rpartition("kvswap/")[2]
            n = row["summary"]
            out[module] = Covered(n["num_statements"], n["covered_lines"], n["num_branches"], n["covered_branches"])
        return {module: covered for module, covered in out.items() if covered.lines}


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a command.  Raises `CalledProcessError`."""
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def said(path: Path) -> Counter[str]:
    """The lines of a module that say something, with how often they occur."""
    lines = (re.sub(r"\s+", " ", line).strip() for line in path.read_text().splitlines())
    return Counter(line for line in lines if len(line) >= SAID and not line.startswith(("#", "import ", "from ")))


def origins(before: Side, after: Side) -> dict[str, str]:
    """For each module of now the one it came from; those that are new are left out."""
    old = {str(p.relative_to(before.tree)): said(p) for p in (before.tree / "kvswap").rglob("*.py")}
    changes = subprocess.run(
        ["git", "diff", "-M30%", "-l10000", "--name-status", "--diff-filter=R", before.commit, after.commit, "--", "kvswap"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    renamed = {new: was for _, was, new in (line.split("\t") for line in changes.splitlines())}
    out = {}
    for path in sorted((after.tree / "kvswap").rglob("*.py")):
        module = str(path.relative_to(after.tree))
        if module in old or module in renamed:
            out[module] = renamed.get(module, module)
            continue
        mine = said(path)
        best, shared = max(((name, (mine & lines).total()) for name, lines in old.items()), key=lambda pair: pair[1])
        if shared >= 0.2 * mine.total():
            out[module] = best
    return out


def page(sides: tuple[Side, Side], measured: list[dict[str, Covered]], came: dict[str, str]) -> tuple[str, list[str]]:
    """The tables as Markdown, and the modules of which less runs now."""
    (before, after), (then, now) = sides, measured
    lower = [m for m, c in now.items() if m in came and came[m] in then and c.share < then[came[m]].share - 0.0005]
    lines = [
        "# Branch coverage before and after",
        "",
        f"Before: `{before.commit}`; after: `{after.commit}`. All tiers ",
    ]
    lines[-1] += "together; lines and branches that ran, of all. A module is compared with the one it came from."
    for title, rows in ((f"After: `{after.commit}`", now), (f"Before: `{before.commit}`", then)):
        total = Covered(*(sum(getattr(c, n) for c in rows.values()) for n in Covered.__dataclass_fields__))
        mark = title.startswith("After")
        lines += [
            "",
            f"## {title}",
            "",
            "| module | lines | branches | ran |" + (" came from | ran before |" if mark else ""),
        ]
        lines.append("|---|---|---|---|" + ("---|---|" if mark else ""))
        for module, c in [*sorted(rows.items()), ("all", total)]:
            row = f"| {module} | {c.lines_run} of {c.lines} | {c.branches_run} of {c.branches} | {c.share:.1%} |"
            if mark:
                was = came.get(module, "")
                there = f"{then[was].share:.1%}" if was in then else "-"
                row += f" {'' if was == module else was or 'new'} | {there}{' **lower**' if module in lower else ''} |"
            lines.append(row)
    return "\n".join(lines) + "\n", lower


def main(arguments: list[str]) -> int:
    """Measure both sides and write the page; returns the exit code: 1 where less of a module runs now."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage_tables")
    parser.add_argument("before", help="a commit")
    parser.add_argument("tests", nargs="*", help="test files or folders; without any, all tiers")
    parser.add_argument("--report", type=Path, help="where the page goes (else standard output)")
    parser.add_argument("--keep", type=Path, help="an empty directory for the checkouts and figures, which stay there")
    given = parser.parse_args(arguments)
    home = given.keep or Path(tempfile.mkdtemp(prefix="kvswap-coverage-"))
    commits = [
        subprocess.run(
            ["git", "rev-parse", "--short", name], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in (given.before, "HEAD")
    ]
    sides = Side("before", commits[0], home / "before"), Side("after", commits[1], home / "after")
    try:
        measured = []
        for side in sides:
            side.home.mkdir(parents=True)
            side.prepare(Path(sys.executable))
            codes = side.measure([name for name in given.tests if (side.tree / name).exists()] if given.tests else [])
            if any(code not in (0, 5) for code in codes):
                print(f"== {side.name}: some tests failed (pytest's codes {codes}); what they ran counts all the same")
            measured.append(side.result())
        text, lower = page(sides, measured, origins(*sides))
    finally:
        if given.keep is None:
            for tree in home.glob("**/tree"):
                subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=False)
            shutil.rmtree(home, ignore_errors=True)
    if given.report is not None:
        given.report.write_text(text)
    else:
        print(text)
    for module in lower:
        print(f"less of it runs than before: {module}", file=sys.stderr)
    return bool(lower)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
