"""Directories as origins: nothing leads out of them, and whatever is wrong is theirs and not this node's."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvswap.core.errors import NetworkTimeout, OriginError, OriginRefused
from kvswap.core.failures import is_own
from kvswap.core.limits import LIMITS, Limits
from kvswap.origins import files
from kvswap.origins.files import FileBackend
from tests.origins.places import check_reading, check_writing
from tests.support import run


def place(directory: Path) -> FileBackend:
    directory.mkdir(exist_ok=True)
    return FileBackend(f"file://{directory}")


def test_a_directory_does_what_a_place_must(tmp_path: Path) -> None:
    async def body() -> None:
        share = place(tmp_path / "share")
        await check_writing(share)
        await check_reading(share)
        await share.check()
        await share.close()
        assert not list((tmp_path / "share").rglob(".*.part"))

    run(body())


def test_whoever_may_read_the_directory_may_read_what_is_put_there(tmp_path: Path) -> None:
    async def body() -> None:
        before = os.umask(0o077)
        try:
            for mode in (0o755, 0o700):
                share = place(tmp_path / f"{mode:o}")
                (tmp_path / f"{mode:o}").chmod(mode)
                await share.put("a/b", b"x")
                assert (tmp_path / f"{mode:o}" / "a").stat().st_mode & 0o777 == mode
                assert (tmp_path / f"{mode:o}" / "a" / "b").stat().st_mode & 0o777 == mode & 0o666
        finally:
            os.umask(before)

    run(body())


def test_links_pipes_and_directories_lead_nowhere(tmp_path: Path) -> None:
    async def body() -> None:
        share = place(tmp_path / "share")
        (tmp_path / "secret").write_bytes(b"secret")
        (tmp_path / "outside").mkdir()
        (tmp_path / "share" / "link").symlink_to(tmp_path / "secret")
        (tmp_path / "share" / "chunks").symlink_to(tmp_path / "outside")
        os.mkfifo(tmp_path / "share" / "pipe")
        (tmp_path / "share" / "directory").mkdir()
        for name in ("link", "chunks/x", "pipe", "directory"):
            with pytest.raises(OriginError) as raised:
                await share.get(name, 100)
            assert not is_own(raised.value)
            with pytest.raises(OriginError):
                await share.read_into(name, memoryview(bytearray(6)), lambda n: None)
        with pytest.raises(OriginError):
            await share.put("chunks/x", b"x")
        assert list((tmp_path / "outside").iterdir()) == []
        await share.put("link", b"mine")  # takes the place of the link, and not of what it leads to
        assert (tmp_path / "secret").read_bytes() == b"secret"
        assert {row.name async for row in share.files("")} == {"link"}

    run(body())


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    at = tmp_path / "small"
    at.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", at]).returncode:
        pytest.skip("needs root, and mount")
    yield at
    subprocess.run(["umount", at], check=True)


def test_a_full_and_a_read_only_file_system_are_told_and_nothing_is_lost(small: Path) -> None:
    async def body() -> None:
        share = place(small)
        await share.put("a/one", b"kept")
        with pytest.raises(OriginError, match="is full") as raised:
            await share.put("a/one", bytes(1 << 20))
        assert not is_own(raised.value)
        assert (await share.get("a/one", 10)).data == b"kept" and len(list((small / "a").iterdir())) == 1
        subprocess.run(["mount", "-o", "remount,ro", small], check=True)
        with pytest.raises(OriginRefused, match="refuses it"):
            await share.put("a/one", b"other")
        with pytest.raises(OriginRefused):
            await share.delete("a/one")
        assert (await share.get("a/one", 10)).data == b"kept"

    run(body())


def test_a_drive_that_hangs_costs_its_deadline_and_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(files, "LIMITS", Limits(origin_seconds=0.2, stall_seconds=0.2))
        share = place(tmp_path / "share")
        (tmp_path / "share" / "x").write_bytes(bytes(100))
        let_go = __import__("threading").Event()
        monkeypatch.setattr(files.os, "pread", lambda *a: let_go.wait(60) and b"late")
        memory = bytearray(100)
        with pytest.raises(NetworkTimeout):
            await share.read_into("x", memoryview(memory), lambda n: None)
        let_go.set()
        await asyncio.sleep(0.05)
        assert memory == bytes(100)

    assert LIMITS.origin_seconds > 1
    run(body())


def test_a_lock_that_is_kept_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        share = place(tmp_path / "share")
        with share._locked():
            monkeypatch.setattr(files, "LIMITS", Limits(origin_seconds=0.1))
            with pytest.raises(OriginError, match="locked"):
                await share.put("x", b"x", "")

    run(body())
