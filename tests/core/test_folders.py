"""A folder as one document: the same on every machine, and its beginning stays when a later file changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kvswap.core import folders
from kvswap.core.errors import InvalidDocument
from kvswap.core.folders import read_folder


def make(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def paths(root: Path) -> list[str]:
    return [file.path for file in read_folder(root).files]


def test_files_stand_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.txt", "a/z.md", "a/b/c.md", "a.txt", "Z.txt", "a-b.txt", "ä.txt"]
    one = make(tmp_path / "one", {name: f"text of {name}" for name in names})
    other = make(tmp_path / "other", {name: f"text of {name}" for name in reversed(names)})
    assert paths(one) == sorted(names, key=str.encode)
    assert read_folder(one) == read_folder(other)
    assert "=== a/b/c.md ===\ntext of a/b/c.md\n" in read_folder(one).text


def test_a_change_leaves_the_beginning_up_to_it(tmp_path: Path) -> None:
    root = make(tmp_path, {f"{n:02}.txt": f"text {n}" for n in range(9)})
    before = read_folder(root).text
    (root / "07.txt").write_text("another text")
    after = read_folder(root).text
    kept = before.index("=== 07.txt ===")
    assert after != before and after[:kept] == before[:kept]


def test_what_is_ignored_hidden_linked_or_no_text_is_left_out(tmp_path: Path) -> None:
    root = make(
        tmp_path / "root",
        {
            "a.txt": "a",
            ".env": "SECRET=1",
            ".git/config": "x",
            "build/out.txt": "x",
            "deep/keep.log": "kept",
            "deep/x.log": "x",
            "x.log": "x",
            "picture.bin": b"\x89PNG\xff\0",
            "empty.txt": " \n",
            ".gitignore": "*.log\n/build/\n",
            "deep/.gitignore": "!keep.log\n",
        },
    )
    (tmp_path / "outside.txt").write_text("the secret")
    (root / "link.txt").symlink_to(tmp_path / "outside.txt")
    (root / "linked").symlink_to(tmp_path)
    made = read_folder(root)
    assert [file.path for file in made.files] == ["a.txt", "deep/keep.log"]
    assert set(made.left_out) == {"picture.bin", "empty.txt"}
    assert "secret" not in made.text.lower()


def test_git_ignores_the_same(tmp_path: Path) -> None:
    rules = "*.log\n!keep.log\n/build/\ndoc/*.txt\n!doc/a.txt\n**/cache\nx[12].md\n# no rule\n\\#odd.txt\n"
    names = ["a.log", "keep.log", "build/x.txt", "sub/build/x.txt", "doc/a.txt", "doc/b.txt", "doc/sub/c.txt"]
    names += ["cache/x.txt", "sub/cache/y.txt", "x1.md", "x3.md", "#odd.txt", "sub/x2.md"]
    root = make(tmp_path, {".gitignore": rules, **{name: name for name in names}})
    subprocess.run(["git", "init", "-q", root], check=True)
    listed = ["git", "-C", root, "ls-files", "-co", "--exclude-standard", "-z"]
    said = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0")
    assert paths(root) == sorted(name for name in said if name and name != ".gitignore")


def test_digests_and_lengths_are_those_of_the_files(tmp_path: Path) -> None:
    (file,) = read_folder(make(tmp_path, {"a.txt": "abc"})).files
    assert file.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file.bytes == 3


def test_a_folder_without_texts_or_with_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidDocument, match="no text files"):
        read_folder(make(tmp_path / "none", {"x.bin": b"\xff\0"}))
    monkeypatch.setattr(folders, "_FILES", 3)
    with pytest.raises(InvalidDocument, match="more than 3"):
        read_folder(make(tmp_path / "many", {f"{n}.txt": "x" for n in range(4)}))
