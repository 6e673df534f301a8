"""`kvswap model rm`: a model that was pulled goes, nothing else does, and not while somebody uses it."""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from kvswap.cli.main import cli, main
from kvswap.core.errors import NotFound, UsageError
from kvswap.model.removal import find_pulled, processes_with, remove
from tests.support import Daemon, kvswap, last_json


@pytest.fixture
def models(tmp_path: Path, tiny_models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of models with two in it."""
    root = tmp_path / "models"
    for name in ("org--tiny", "other"):
        shutil.copytree(tiny_models["llama"], root / name)
    monkeypatch.setenv("KVSWAP_MODELS", str(root))
    return root


def test_it_is_gone_and_the_others_stay(models: Path) -> None:
    found = find_pulled("org/tiny", models)
    assert found.directory == models / "org--tiny"
    assert found.bytes == sum(p.stat().st_size for p in found.directory.iterdir()) > 0
    remove(found)
    assert sorted(p.name for p in models.iterdir()) == ["other"]
    with pytest.raises(NotFound):
        find_pulled("org/tiny", models)


def test_a_link_goes_and_what_it_leads_to_stays(models: Path, tmp_path: Path) -> None:
    (models / "other").rename(tmp_path / "mine")
    (models / "linked").symlink_to(tmp_path / "mine")
    found = find_pulled("linked", models)
    assert found.bytes == 0
    remove(found)
    assert not (models / "linked").exists() and (tmp_path / "mine" / "config.json").exists()


@pytest.mark.parametrize("name", ["/", ".", "./other", "~/models"])
def test_a_directory_of_the_users_own_is_not_removed(name: str, models: Path) -> None:
    with pytest.raises(UsageError):
        find_pulled(name, models)


@pytest.mark.parametrize("name", ["..", "../models/other", "org--tiny/..", "nothing", ""])
def test_a_name_leads_nowhere_else(name: str, models: Path) -> None:
    with pytest.raises((NotFound, UsageError)):
        find_pulled(name, models)


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_a_process_that_has_it_open_is_seen(how: str, models: Path) -> None:
    weights = next((models / "other").glob("*.safetensors"))
    ready_r, ready_w = os.pipe()
    go_r, go_w = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go_w)
        file = weights.open("rb")
        if how == "mapped":
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            file.close()
            assert held
        os.write(ready_w, b"x")
        os.read(go_r, 1)
        os._exit(0)
    os.read(ready_r, 1)
    assert processes_with(models / "other") == [child] and processes_with(models / "org--tiny") == []
    os.close(go_w)
    os.waitpid(child, 0)
    assert processes_with(models / "other") == []


def test_it_asks_and_is_not_removed_without_a_yes(models: Path, tmp_path: Path) -> None:
    done = kvswap(tmp_path / "home", "model", "rm", "other")
    assert done.returncode == 2 and "model rm -y other" in done.stderr and (models / "other").exists()
    done = kvswap(tmp_path / "home", "model", "rm", "other", "--yes", "--json")
    assert done.returncode == 0, done.stderr
    assert last_json(done)["removed"] == "other" and not (models / "other").exists()
    assert main(["model", "rm", "-y", "other"]) == 5


@pytest.mark.parametrize(("answer", "code"), [("n\n", 1), ("y\n", 0), ("", 1)])
def test_at_a_terminal_it_asks_first(answer: str, code: int, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("kvswap.cli.commands.model.sys", terminal)
    done = CliRunner().invoke(cli, ["model", "rm", "other"], input=answer)
    assert done.exit_code == code and "delete other (" in done.output, done.output
    assert (models / "other").exists() is (code != 0)


def test_not_while_the_daemon_has_it_loaded(daemon: Callable[..., Daemon], models: Path, tmp_path: Path) -> None:
    node = daemon("a", "--no-p2p", "--model", "other", KVSWAP_MODELS=str(models))
    node.client.publish("Some text that is long enough to be read by a model. " * 4)
    done = kvswap(node.home, "model", "rm", "-y", "other")
    assert done.returncode == 1 and "in use by process" in done.stderr and "kvswap stop" in done.stderr, done.stderr
    assert (models / "other" / "config.json").exists()
    assert kvswap(node.home, "stop").returncode == 0
    assert kvswap(node.home, "model", "rm", "-y", "other").returncode == 0
