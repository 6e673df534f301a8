from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvswap.cli.main import VERBS, cli, main
from tests.support import ROOT, kvswap


def test_help_imports_neither_torch_nor_libp2p() -> None:
    script = (
        "import sys; from kvswap.cli.main import main; main(['--help']); "
        "print([m for m in ('torch', 'transformers', 'libp2p', 'trio', 'aiohttp', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


GROUPS = ("origin", "bench", "trust", "model", "manifest", "codec", "group", "host")  # verbs that have verbs


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_takes_the_common_options(verb: str) -> None:
    done = CliRunner().invoke(cli, [verb, "--help"])
    assert done.exit_code == 0, done.output
    if verb not in GROUPS:
        for option in ("--json", "--home", "--quiet", "--no-color"):
            assert option in done.output, (verb, option)


def test_usage_errors_are_exit_2(tmp_path: Path) -> None:
    for arguments in (
        ["nonsense"],
        ["fetch"],
        ["ask", "x"],
        ["publish", "--codec"],
        ["manifest", "check", "/nonexistent"],
    ):
        assert main(arguments) == 2, arguments
    assert kvswap(tmp_path, "verify").returncode == 2
    assert kvswap(tmp_path, "model", "--nonsense").returncode == 2


def test_a_bad_config_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("nonsense = 1")
    done = kvswap(tmp_path, "daemon")
    assert done.returncode == 2
    assert "nonsense" in done.stderr and "config.toml" in done.stderr


def test_a_bootstrap_address_without_a_peer_is_refused_at_once(tmp_path: Path) -> None:
    for address in ("/ip4/127.0.0.1/tcp/4777", "/ip4/127.0.0.1/tcp/4777/p2p/nobody"):
        done = kvswap(tmp_path, "daemon", "--bootstrap", address)
        assert done.returncode == 2, done.stderr


def test_doctor_and_model_ls_need_no_daemon(tmp_path: Path) -> None:
    done = kvswap(tmp_path, "doctor")
    assert done.returncode == 1 and "kvswap daemon" in done.stdout
    assert main(["model", "ls", "--json"]) == 0


def test_errors_under_json_are_json_on_stdout(tmp_path: Path) -> None:
    done = kvswap(tmp_path, "status", "--json")
    assert done.returncode == 10
    assert '"code": "daemon_not_running"' in done.stdout


def test_every_command_in_the_documents_exists() -> None:
    """README and docs cannot drift: each `kvswap VERB --option` they show is a real one."""
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
    seen = 0
    for path in texts:
        shell = "\n".join(re.findall(r"^```sh$(.*?)^```$", path.read_text(), re.M | re.S))
        for line in re.findall(r"^kvswap ([a-z].*)$", shell, re.M):
            words = line.split("#")[0].split()
            assert words[0] in VERBS, (path, line)
            arguments = [words[0]]
            if words[0] in GROUPS and len(words) > 1 and not words[1].startswith("-"):
                arguments.append(words[1])
            output = CliRunner().invoke(cli, [*arguments, "--help"]).output
            for option in re.findall(r"(?<!\S)(--[a-z-]+)", line.split("#")[0]):
                assert option in output, (path, line, option)
            seen += 1
    assert seen >= 10
