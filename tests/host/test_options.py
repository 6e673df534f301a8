"""What was typed for a host is judged before its engine is started: all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from kvswap.core.errors import InvalidSettings
from kvswap.host.run import HostOptions, check_options
from tests.core.test_failures import is_told
from tests.support import kvswap
from tests.trust.test_hosting import TARIFF

WRONG: dict[str, list[str]] = {
    "listen": ["", "8100", ":8100", "[]:1", "127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:²", "127.0.0.1"],
    "url": ["", "x", "ftp://a:1", "http://", "http://a:99999", "http://a:x", "http://a/path?q", "http://a\r\nb"],
    "engine": ["", "x", "file:///etc", "http://", "http://a:99999", "http://[::1", "http://a\x1b"],
    "model": ["", "no-such", "./relative", "/etc", "a\x1bb"],
}  # fmt: skip


def options(models: dict[str, Path], **changed: Any) -> HostOptions:
    base = HostOptions(Path("/x"), str(models["llama"]), "float32", "127.0.0.1:0", 256, TARIFF)
    return HostOptions(**{name: changed.get(name, getattr(base, name)) for name in base.__slots__})  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", WRONG)
def test_every_wrong_value_is_told(name: str, tiny_models: dict[str, Path]) -> None:
    for value in WRONG[name]:
        with pytest.raises(InvalidSettings) as caught:
            check_options(options(tiny_models, **{name: value}))
        is_told(caught.value)
        assert [f["name"] for f in caught.value.details["faults"]] == [name], value


def test_right_values_are_taken_and_all_faults_are_told_at_once(tiny_models: dict[str, Path]) -> None:
    for listen in ("127.0.0.1:0", "[::1]:65535", "0.0.0.0:8100", "host.example:1"):
        check_options(options(tiny_models, listen=listen))
    check_options(options(tiny_models, url="https://a.example:8443", engine="http://127.0.0.1:8000/v1"))
    with pytest.raises(InvalidSettings) as caught:
        check_options(options(tiny_models, **{name: values[1] for name, values in WRONG.items()}))
    assert len(caught.value.details["faults"]) == 4


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300", "x", ""])
@pytest.mark.parametrize(
    "arguments",
    [["host", "--read-price"], ["host", "--warm-seconds"], ["plan", "x", "--max-seconds"], ["economics", "--readers"]],
    ids=" ".join,
)
def test_numbers_of_the_command_line_are_finite(arguments: list[str], value: str, capsys: Any) -> None:
    from kvswap.cli.main import main

    assert main(["--home", "/nonexistent", *arguments, value]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_host_tells_what_is_wrong_before_it_asks_for_a_daemon(tmp_path: Path) -> None:
    done = kvswap(tmp_path, "host", "--listen", "here", "--url", "there", "--model", "/etc", "--engine", "x")
    assert done.returncode == 2 and msgspec
    for words in ("--listen", "--url", "--model", "--engine"):
        assert words in done.stderr
