from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from kvswap.core.directories import home_directory, models_directory
from kvswap.core.errors import UsageError


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "KVSWAP_HOME", "KVSWAP_MODELS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def on(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from platformdirs import macos, unix, windows

    kinds: dict[str, Any] = {"linux": unix.Unix, "darwin": macos.MacOS, "win32": windows.Windows}
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(platformdirs, "PlatformDirs", kinds[platform])


@pytest.mark.parametrize("xdg", [False, True])
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_places_are_those_of_platformdirs(
    account: Path, monkeypatch: pytest.MonkeyPatch, platform: str, xdg: bool
) -> None:
    on(platform, monkeypatch)
    if xdg:
        monkeypatch.setenv("XDG_DATA_HOME", str(account / "d"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(account / "c"))
    said = platformdirs.PlatformDirs("kvswap", appauthor=False)
    assert home_directory() == said.user_data_path
    assert models_directory() == said.user_cache_path / "models"


def test_macos_has_its_own(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on("darwin", monkeypatch)
    assert home_directory() == account / "Library" / "Application Support" / "kvswap"
    assert models_directory() == account / "Library" / "Caches" / "kvswap" / "models"


def test_windows_has_its_own(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on("win32", monkeypatch)
    local = account / "AppData" / "Local"
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda name: str(local))
    assert home_directory().name == "kvswap" and home_directory().is_relative_to(local)
    assert models_directory().is_relative_to(local / "kvswap")


def test_what_an_earlier_version_made_stays_in_use(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on("darwin", monkeypatch)
    home, cache = account / ".local" / "share" / "kvswap", account / ".cache" / "kvswap"
    home.mkdir(parents=True)
    assert home_directory() == home
    assert models_directory() == account / "Library" / "Caches" / "kvswap" / "models"  # there are none of before
    cache.mkdir(parents=True)
    assert models_directory() == cache / "models"


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_what_the_user_names_goes_before_everything(
    account: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    on(platform, monkeypatch)
    monkeypatch.setenv("KVSWAP_HOME", str(account / "h"))
    monkeypatch.setenv("KVSWAP_MODELS", str(account / "m"))
    assert (home_directory(), models_directory()) == (account / "h", account / "m")
    assert home_directory(str(account / "flag")) == account / "flag"


def test_a_relative_xdg_directory_is_ignored(account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert home_directory() == account / ".local" / "share" / "kvswap"


def test_linux_does_not_import_it(account: Path) -> None:
    import subprocess

    script = "import sys; from kvswap.core.directories import *; home_directory(); print('platformdirs' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"


def test_a_name_that_is_no_path_is_refused() -> None:
    with pytest.raises(UsageError, match="home"):
        home_directory("a\0b")
