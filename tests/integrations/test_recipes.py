"""The files of `examples/vllm` say what kvswap and the connector understand."""

from __future__ import annotations

import configparser
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kvswap.core.settings import Settings
from tests.support import ROOT

FILES = ROOT / "examples" / "vllm"


def variables(name: str) -> dict[str, str]:
    lines = [line for line in (FILES / name).read_text().splitlines() if line and not line.startswith("#")]
    return {name: value.strip("'") for name, value in (line.split("=", 1) for line in lines)}


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(FILES / name)
    return parser


def test_the_nodes_settings_are_settings(tmp_path: Path) -> None:
    given = variables("kvswap.env") | {"KVSWAP_HOME": str(tmp_path)}
    known = {f"KVSWAP_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert set(given) <= known
    settings = Settings.load(env=given)
    assert settings.listen == ("/ip4/10.0.0.11/tcp/4001",) and settings.bulk_port == 4002


def test_the_engine_names_the_connector_as_the_docs_do() -> None:
    config = json.loads(variables("vllm.env")["KV_TRANSFER_CONFIG"])
    assert (ROOT / Path(*config["kv_connector_module_path"].split(".")) / "connector.py").is_file()
    assert config["kv_load_failure_policy"] == "recompute"
    for text in (ROOT / "README.md", ROOT / "docs" / "vllm.md"):
        flat = "".join(text.read_text().split())
        assert all(f'"{name}":"{value}"' in flat for name, value in config.items()), text.name


def test_both_units_are_of_one_user_and_home() -> None:
    node, engine = unit("kvswap.service")["Service"], unit("vllm.service")["Service"]
    assert node["User"] == engine["User"] == "kvswap"
    for name in variables("vllm.env"):
        assert f"${{{name}}}" in engine["ExecStart"] or f"${name}" in engine["ExecStart"]


def test_the_host_s_unit_says_what_the_command_takes() -> None:
    from kvswap.cli.commands.host import host_command

    service = unit("kvswap-host.service")["Service"]
    given = variables("kvswap-host.env")
    for name in given:
        assert f"${{{name}}}" in service["ExecStart"] or f"${name}" in service["ExecStart"]
    words = service["ExecStart"].split()
    known = {option for parameter in host_command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not here")
@pytest.mark.parametrize("name", ["kvswap.service", "vllm.service", "kvswap-host.service"])
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    text = (
        (FILES / name)
        .read_text()
        .replace("/opt/kvswap/bin/kvswap", "/bin/true")
        .replace("/opt/kvswap/bin/python", "/bin/true")
    )
    (tmp_path / name).write_text(text.replace("Wants=kvswap.service\n", "").replace("Requires=kvswap.service\n", ""))
    done = subprocess.run(["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
