from __future__ import annotations

from pathlib import Path

import pytest

from kvswap.core.directories import home_directory, models_directory
from kvswap.core.errors import UsageError
from kvswap.core.settings import Settings


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    home = tmp_path / "h"
    home.mkdir()
    (home / "config.toml").write_text('codec = "raw"\nblock_tokens = 128\nprice_per_gb = 0.5\nmdns = false\n')
    env = {"HOME": "/", "KVSWAP_BLOCK_TOKENS": "64", "KVSWAP_PRICE_PER_GB": "0.25"}
    settings = Settings.load(str(home), env, price_per_gb=0.125, listen=("/ip4/127.0.0.1/tcp/1",), model=None)
    assert (settings.codec, settings.block_tokens, settings.price_per_gb) == ("raw", 64, 0.125)
    assert settings.mdns is False
    assert settings.listen == ("/ip4/127.0.0.1/tcp/1",)
    assert settings.model == "smollm2-135m"


def test_directories_follow_xdg_and_overrides() -> None:
    assert home_directory(None, {"HOME": "/u"}) == Path("/u/.local/share/kvswap")
    assert home_directory(None, {"HOME": "/u", "XDG_DATA_HOME": "/d"}) == Path("/d/kvswap")
    assert home_directory(None, {"HOME": "/u", "KVSWAP_HOME": "/k"}) == Path("/k")
    assert home_directory("/flag", {"HOME": "/u", "KVSWAP_HOME": "/k"}) == Path("/flag")
    assert models_directory({"HOME": "/u", "XDG_CACHE_HOME": "/c"}) == Path("/c/kvswap/models")
    assert models_directory({"HOME": "/u", "KVSWAP_MODELS": "/m"}) == Path("/m")


@pytest.mark.parametrize(
    "text", ["nonsense = 1", "block_tokens = 'many'", "quota_bytes = -1", "mdns = 'perhaps'", "= broken"]
)
def test_a_bad_setting_names_itself_and_its_source(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        Settings.load(str(tmp_path), {"HOME": "/"})
    assert "config.toml" in caught.value.message


def test_every_setting_is_documented_with_its_default() -> None:
    from dataclasses import fields

    from tests.support import ROOT

    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = {
        line.split("|")[1].strip(" `"): line.split("|")[2].strip(" `")
        for line in text.splitlines()
        if line.startswith("| `")
    }
    settings = {f.name: f.default for f in fields(Settings) if f.name not in ("home", "models")}
    assert set(rows) == set(settings)
    for name, default in settings.items():
        shown = (
            ",".join(default)
            if isinstance(default, tuple)
            else str(default).lower()
            if isinstance(default, bool)
            else default
        )
        assert rows[name] == str(shown) or float(rows[name]) == float(shown), name
