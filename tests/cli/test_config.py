"""`kvswap config`: every setting with its value, and whether a default, a file, the environment or an option gave it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kvswap.api.node import setting_rows
from kvswap.cli.main import main
from kvswap.core.settings import Settings
from tests.support import Daemon, kvswap, last_json


def told(home: Path, *arguments: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = kvswap(home, "config", *arguments, "--json", env=env)
    assert done.returncode == 0, done.stderr
    return last_json(done)


def by_name(value: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in value["settings"]}


def test_each_layer_is_named_without_a_daemon(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('# a comment\nquota_bytes = 5000\n\nlog_level = "debug"\ncodec = "raw"\n')
    value = told(tmp_path, env={"KVSWAP_CODEC": "int8", "KVSWAP_MODELS": str(tmp_path / "models")})
    rows = by_name(value)
    assert value["daemon"] is False and value["home"] == str(tmp_path)
    assert set(rows) == {field.name for field in fields(Settings)}
    assert (rows["quota_bytes"]["value"], rows["quota_bytes"]["default"]) == (5000, 10**10)
    assert rows["quota_bytes"]["from"] == f"{tmp_path / 'config.toml'} line 2"
    assert rows["log_level"]["from"].endswith("line 4")
    assert (rows["codec"]["value"], rows["codec"]["from"]) == ("int8", "KVSWAP_CODEC in the environment")
    assert rows["models"]["from"] == "KVSWAP_MODELS in the environment"
    assert rows["home"]["from"] == "--home"
    assert (rows["dtype"]["from"], rows["listen"]["value"]) == ("default", ["/ip4/127.0.0.1/tcp/0"])


def test_of_a_running_daemon_it_says_what_holds_there(daemon: Callable[..., Daemon]) -> None:
    node = daemon("a", "--no-p2p", "--threads", "3")
    rows = by_name(value := told(node.home))
    assert value["daemon"] is True
    assert (rows["threads"]["value"], rows["threads"]["from"]) == (3, "--threads")
    assert (rows["p2p"]["value"], rows["p2p"]["from"]) == (False, "--no-p2p")
    assert rows["threads"]["after_restart"] is None  # an option is given again
    (node.home / "config.toml").write_text("quota_bytes = 7000")
    row = by_name(told(node.home))["quota_bytes"]
    assert (row["value"], row["from"], row["after_restart"]) == (10**10, "default", 7000)
    done = kvswap(node.home, "config", "quota_bytes")
    assert done.stdout == "10000000000\n  from default\n" and "would be 7000 after a restart" in done.stderr
    assert node.client.config().home == str(node.home)


def test_one_setting_or_only_what_is_not_usual(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KVSWAP_MODELS")
    (tmp_path / "config.toml").write_text("relay = true\nbootstrap = []\n")
    assert main(["--home", str(tmp_path), "config", "relay"]) == 0
    assert capsys.readouterr().out == f"true\n  from {tmp_path / 'config.toml'} line 1\n"
    assert main(["--home", str(tmp_path), "config", "--changed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["SETTING", "home", "bootstrap", "relay"]
    assert main(["--home", str(tmp_path), "config", "nonsense"]) == 5
    assert "no setting 'nonsense'" in capsys.readouterr().err


def test_faults_are_told_as_a_daemon_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text("quota_bytes = -1")
    assert main(["--home", str(tmp_path), "config"]) == 2
    assert "line 1" in capsys.readouterr().err


def test_rows_have_values_of_json(tmp_path: Path) -> None:
    settings, places = Settings.load_with_places(str(tmp_path), {"HOME": str(tmp_path)}, mdns=False, dtype=None)
    rows = {row.name: row for row in setting_rows(settings, places)}
    json.dumps([row.value for row in rows.values()])
    assert rows["mdns"].source == "--no-mdns" and rows["dtype"].source == "default"
    assert rows["home"].value == str(tmp_path) and rows["home"].default is None
    assert rows["models"].source == "default"
