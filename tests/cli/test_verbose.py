"""`-v`: every verb says on standard error what it does; nothing of it goes to standard output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvswap.cli.main import VERBS, main
from kvswap.core import log
from tests.support import Daemon, kvswap


@pytest.fixture(autouse=True)
def no_handlers_stay() -> Iterator[None]:
    yield
    log.start_log(None)


@pytest.mark.parametrize(
    "words",
    ["model ls", "economics", "status", "ls", "config", "logs", "doctor", "completion bash", "trust ls", "stop"],
)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_it_says_which_home_and_how_long_it_took(
    words: str, before: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-v", *words.split()] if before else [*words.split(), "-v"]
    main([*arguments, "--home", str(tmp_path)])
    shown = capsys.readouterr()
    assert f"home {tmp_path}" in shown.err and re.search(
        rf"kvswap {words.removesuffix(' bash')} took \d+\.\d+ s", shown.err
    ), shown.err
    assert "INFO" not in shown.out
    main([*words.split(), "--home", str(tmp_path)])
    assert "took" not in capsys.readouterr().err


def test_every_verb_takes_it() -> None:
    """The option comes with `@verb`, which all verbs have: those below a group too."""
    import click

    from kvswap.cli.main import cli

    for name in VERBS:
        command = cli.get_command(click.Context(cli), name)
        inner = list(command.commands.values()) if isinstance(command, click.Group) else [command]
        for one in inner:
            assert any("--verbose" in parameter.opts for parameter in one.params), (name, one.name)


def test_it_names_the_request_that_the_daemons_log_has(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    node = daemon("a", "--no-p2p", "--log-level", "debug")
    done = kvswap(node.home, "ls", "-v", "--json")
    assert json.loads(done.stdout) == {"artifacts": []}
    (name,) = re.findall(r"GET /v1/artifacts 200, \d+\.\d+ s, request (\w+)", done.stderr)
    logged = kvswap(node.home, "logs", "--json", "-n", "1000")
    assert any(json.loads(line).get("request") == name or name in line for line in logged.stdout.splitlines())
    wrong = kvswap(node.home, "show", "sha256:" + "ab" * 32, "-v")
    assert wrong.returncode == 5
    assert "the error is not_found, exit code 5" in wrong.stderr and "GET /v1/artifacts 404" in wrong.stderr
    assert "abab" not in wrong.stderr.split("kvswap: ")[0]  # what a path names is not in the log
