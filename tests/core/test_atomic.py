from __future__ import annotations

import ast
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.atomic import clear_unfinished, replacing, write_atomic
from kvswap.store.home import Home
from tests.support import ROOT

# What moves a file and is no writer by rename: the function, and why.
MOVES = {
    "kvswap/core/atomic.py:replacing": "the helper",
    "kvswap/cost/calibration.py:_set_aside": "a file that cannot be read is kept for inspection",
    "kvswap/store/database.py:_move": "the same, of a database",
    "kvswap/store/envelopes.py:mark_removed": "a removal: renaming takes no room on a full disk",
    "kvswap/store/envelopes.py:set_aside": "into quarantine",
    "kvswap/store/files.py:set_aside": "into quarantine",
    "kvswap/origins/files.py:_put": "by descriptors of directories: whoever else writes there may put a link in the way",
    "kvswap/model/removal.py:remove": "a directory of many files goes at once",
    "kvswap/model/pull.py:pull": "a directory of many files, made in one that a failure removes",
}
TEMPORARY = {"kvswap/net/bulk/identity.py:_path_of": "a secret that OpenSSL wants as a path: it is never renamed"}


def _functions(path: Path) -> list[tuple[str, ast.AST]]:
    tree = ast.parse(path.read_text())
    return [(n.name, n) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _calls(wanted: Callable[[ast.Call], bool]) -> set[str]:
    return {
        f"{path.relative_to(ROOT)}:{name}"
        for path in sorted((ROOT / "kvswap").rglob("*.py"))
        for name, function in _functions(path)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and wanted(node)
    }


def _renames(node: ast.Call) -> bool:
    """`os.replace`, `os.rename`, `shutil.move`, and the methods of paths: those of texts take two arguments."""
    f = node.func
    if not isinstance(f, ast.Attribute):
        return False
    if isinstance(f.value, ast.Name) and f.value.id in ("os", "shutil"):
        return f.attr in ("replace", "rename", "renames", "move")
    return f.attr in ("rename", "replace") and len(node.args) == 1 and not node.keywords


def _makes_temporary(node: ast.Call) -> bool:
    f = node.func
    return isinstance(f, ast.Attribute) and f.attr in ("mkstemp", "NamedTemporaryFile", "mktemp")


def test_one_helper_writes_by_rename() -> None:
    assert _calls(_renames) <= set(MOVES)
    assert _calls(_makes_temporary) <= set(TEMPORARY)


def test_the_search_finds_what_it_looks_for() -> None:
    tree = ast.parse("os.replace(a, b)\npath.rename(b)\npath.replace(b)\ntext.replace('a', 'b')\ntempfile.mkstemp()")
    calls = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    assert [_renames(c) for c in calls if isinstance(c, ast.Call)] == [True, True, True, False, False]
    assert isinstance(calls[4], ast.Call) and _makes_temporary(calls[4])


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with replacing(target) as new:
        new.write(b"ne")
        assert target.read_text() == "old"
        new.write(memoryview(b"w"))
    assert target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_whatever_is_raised_the_file_is_as_it_was(tmp_path: Path, raised: BaseException) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    with pytest.raises(type(raised)), replacing(target) as new:
        new.write(b"half")
        raise raised
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_is_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(OSError):
            write_atomic(target, b"new")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_what_is_synced_and_in_which_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is on disk before its content would be an empty file after a power cut."""
    done: list[str] = []
    fsync, rename = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("names" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    def renamed(source: Any, target: Any) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_atomic(tmp_path / "a", b"x")
    assert done == ["content", "rename", "names"]
    done.clear()
    write_atomic(tmp_path / "a", b"x", durable=False)
    assert done == ["rename"]
    done.clear()
    with replacing(tmp_path / "a", named=False) as new:
        new.write(b"x")
    assert done == ["content", "rename"]


def test_directories_are_made_where_that_is_wanted(tmp_path: Path) -> None:
    target, scratch = tmp_path / "x" / "a", tmp_path / "tmp"
    with pytest.raises(FileNotFoundError), replacing(target):
        raise AssertionError("there is no such directory")
    with replacing(target, scratch=scratch, mkdir=True) as new:
        assert new.path.parent == scratch
        new.write(b"x")
    assert target.read_bytes() == b"x" and not list(scratch.iterdir())


def test_what_a_killed_process_left_is_cleared_and_that_of_a_living_one_kept(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from kvswap.core.atomic import replacing\n"
        "with replacing(Path(sys.argv[1])) as new:\n"
        "    new.write(b'half'); print(new.path, flush=True); time.sleep(600)"
    )
    target = tmp_path / "a"
    target.write_text("old")
    process = subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        left = Path(process.stdout.readline().strip())
        assert left.exists()
        clear_unfinished(tmp_path)
        assert left.exists()  # it is being written
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert target.read_text() == "old" and left.exists()
    (tmp_path / ".a.part").write_text("somebody's own")
    home = Home(tmp_path)
    try:
        assert not left.exists() and (tmp_path / ".a.part").exists() and target.read_text() == "old"
    finally:
        home.close()


def test_the_number_of_a_killed_process_may_come_again(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with replacing(target) as new:
        name = new.path.name
    number = int(name.split("-")[-1].split(".")[0])
    for n in range(number, number + 50):  # other threads of this process may take some
        (tmp_path / f".a.{os.getpid()}-{n}.part").write_text("left")
    write_atomic(target, b"new")
    assert target.read_bytes() == b"new"
