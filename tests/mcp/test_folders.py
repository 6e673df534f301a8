"""What an agent may publish: every way out of the allowed folders is tried."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.errors import InvalidDocument, KvswapError
from kvswap.mcp.folders import AllowedFolders, NotAllowed


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An allowed folder with a text, beside one that is not allowed and has a secret."""
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "deep" / "a.txt").write_text("open to all")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret.txt").write_text("the secret")
    return tmp_path


def test_a_file_below_a_folder_is_read_by_either_spelling(tree: Path) -> None:
    allowed = AllowedFolders.below([tree / "texts"])
    assert allowed.read("deep/a.txt") == allowed.read(str(tree / "texts" / "deep" / "a.txt")) == "open to all"


def test_without_a_folder_nothing_is_read(tree: Path) -> None:
    with pytest.raises(NotAllowed, match="nothing may be published"):
        AllowedFolders().read(str(tree / "texts" / "deep" / "a.txt"))
    assert not AllowedFolders().allowed


def links(tree: Path) -> None:
    """Ways out that somebody has put into the folder."""
    texts = tree / "texts"
    (texts / "link.txt").symlink_to(tree / "other" / "secret.txt")
    (texts / "folder").symlink_to(tree / "other")
    (texts / "inside.txt").symlink_to(texts / "deep" / "a.txt")  # who can change it can change where it leads
    os.link(tree / "other" / "secret.txt", texts / "hard.txt")
    (texts / ".env").write_text("KEY=1")
    (texts / ".git").mkdir()
    (texts / ".git" / "config").write_text("url = https://user:pass@host")
    os.mkfifo(texts / "pipe.txt")


WAYS = (
    *("../other/secret.txt", "deep/../../other/secret.txt", "link.txt", "folder/secret.txt", "inside.txt", "hard.txt"),
    *(".env", ".git/config", "./../other/secret.txt", "pipe.txt", "deep", "", ".", "/etc/passwd", "~/x", "no.txt"),
    *("deep/a.txt/x", "file:///etc/passwd", "https://example.org/x", "/proc/self/environ", "deep\0/a.txt"),
)


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_out(tree: Path, way: str, caplog: pytest.LogCaptureFixture) -> None:
    links(tree)
    allowed = AllowedFolders.below([tree / "texts"])
    with caplog.at_level(logging.WARNING, "kvswap.mcp"), pytest.raises(KvswapError):
        allowed.read(way)
    assert "was refused" in caplog.text  # each is logged


def test_absolute_ways_lead_out_no_more_than_others(tree: Path) -> None:
    links(tree)
    allowed = AllowedFolders.below([tree / "texts"])
    for way in ("link.txt", "folder/secret.txt", "hard.txt", "../other/secret.txt"):
        with pytest.raises(NotAllowed):
            allowed.read(f"{tree}/texts/{way}")
    with pytest.raises(NotAllowed, match="not below"):
        allowed.read(str(tree / "other" / "secret.txt"))


def test_a_folder_whose_name_begins_the_same_is_another_one(tree: Path) -> None:
    (tree / "texts-private").mkdir()
    (tree / "texts-private" / "x.txt").write_text("private")
    with pytest.raises(NotAllowed):
        AllowedFolders.below([tree / "texts"]).read(str(tree / "texts-private" / "x.txt"))


def test_the_second_folder_is_looked_into_as_well(tree: Path) -> None:
    (tree / "more").mkdir()
    (tree / "more" / "b.txt").write_text("b")
    assert AllowedFolders.below([tree / "texts", tree / "more"]).read("b.txt") == "b"


def test_a_folder_that_became_a_link_is_not_followed(tree: Path) -> None:
    allowed = AllowedFolders.below([tree / "texts"])
    (tree / "texts").rename(tree / "moved")
    (tree / "texts").symlink_to(tree / "other")
    with pytest.raises(KvswapError):
        allowed.read("secret.txt")


def test_what_is_no_text_is_refused(tree: Path) -> None:
    (tree / "texts" / "x.bin").write_bytes(b"\xff\xfe\0")
    with pytest.raises(InvalidDocument, match="UTF-8"):
        AllowedFolders.below([tree / "texts"]).read("x.bin")


@given(
    st.lists(st.sampled_from(["..", ".", "texts", "other", "secret.txt", "deep", "a.txt", "folder", "link.txt", "/"]))
)
def test_no_path_of_any_parts_reads_the_secret(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    tree = tmp_path_factory.getbasetemp() / "any"
    if not tree.exists():
        (tree / "texts" / "deep").mkdir(parents=True)
        (tree / "texts" / "deep" / "a.txt").write_text("open to all")
        (tree / "other").mkdir()
        (tree / "other" / "secret.txt").write_text("the secret")
        (tree / "texts" / "folder").symlink_to(tree / "other")
        (tree / "texts" / "link.txt").symlink_to(tree / "other" / "secret.txt")
    allowed = AllowedFolders.below([tree / "texts"])
    for way in ("/".join(parts), f"{tree}/" + "/".join(parts)):
        try:
            assert allowed.read(way) == "open to all"
        except KvswapError:
            pass
