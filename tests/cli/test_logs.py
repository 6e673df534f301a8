"""`kvswap logs`: records of both formats, the last of them, by level and time, and those to come."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from kvswap.cli.commands.logs import LogLine, Since, Tail, read_records
from kvswap.cli.main import cli, main
from kvswap.core import log
from tests.support import Daemon, kvswap, until

OLD = "2026-01-31 12:00:00,123 41 INFO kvswap.daemon.run: kvswap 0.1.0 is ready [3f2a0b1c]"
FAILED = "2026-01-31 12:00:01,000 41 ERROR kvswap.failures: it failed\nTraceback (most recent call last):\n  ..."
NEW = json.dumps(
    {
        "time": "2026-01-31T13:00:02.500Z",
        "level": "warning",
        "logger": "kvswap.watch",
        "process": 42,
        "message": "held up",
        "request": "ab12",
    }
)


def lines_of(home: Path, *arguments: str) -> list[str]:
    done = CliRunner().invoke(cli, ["--home", str(home), "logs", *arguments])
    assert done.exit_code == 0, done.output
    return done.output.splitlines()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "kvswap.log.1").write_text(OLD + "\n")
    (tmp_path / "kvswap.log").write_text(f"{FAILED}\n{NEW}\n")
    return tmp_path


def test_both_formats_and_both_files_are_read(home: Path) -> None:
    lines = lines_of(home)
    assert len(lines) == 5 and lines[0].endswith("info    kvswap.daemon.run: kvswap 0.1.0 is ready [3f2a0b1c]")
    assert lines[0].startswith("2026-01-31 12:00:00.123")
    assert lines[2].strip().startswith("Traceback") and lines[4].endswith("kvswap.watch: held up [ab12]")


def test_as_json_each_record_is_a_line(home: Path) -> None:
    first, failed, last = (json.loads(line) for line in lines_of(home, "--json"))
    assert (first["level"], first["process"], first["request"]) == ("info", 41, "3f2a0b1c")
    assert failed["trace"].startswith("Traceback") and failed["level"] == "error"
    assert last == json.loads(NEW)
    local = datetime(2026, 1, 31, 12, 0, 0, 123_000).astimezone(UTC)
    assert first["time"] == local.strftime("%Y-%m-%dT%H:%M:%S.123Z")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--level", "info"], ["info", "error", "warning"]),
        (["--level", "warning"], ["error", "warning"]),
        (["--level", "error"], ["error"]),
        (["-n", "1"], ["warning"]),
        (["-n", "1", "--level", "error"], ["error"]),
        (["-n", "0"], []),
        (["--since", "1s"], []),
        (["--since", "2026-01-31T13:00:02+00:00"], ["warning"]),
        (["--since", "2020-01-01"], ["info", "error", "warning"]),
    ],
    ids=str,
)
def test_the_last_of_what_fits(home: Path, arguments: list[str], found: list[str]) -> None:
    assert [json.loads(line)["level"] for line in lines_of(home, "--json", *arguments)] == found


@pytest.mark.parametrize("text", ["yesterday", "10", "-1h", "10w", "2026-13-01", ""])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Since().convert(text, None, None)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172_800)])
def test_a_time_ago(text: str, seconds: float) -> None:
    assert abs(time.time() - Since().convert(text, None, None) - seconds) < 30


def test_no_log_is_told(tmp_path: Path) -> None:
    assert main(["--home", str(tmp_path), "logs"]) == 5


def test_what_strangers_wrote_does_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "kvswap.log").write_text(OLD.replace("ready", "\x1b]0;owned\x07") + "\n\x1b[2J\n{not json\n")
    text = "\n".join(lines_of(tmp_path))
    assert "\x1b" not in text and "owned" in text and "{not json" in text


@pytest.mark.parametrize("style", log.FORMATS)
def test_what_the_log_writes_is_read(style: str, tmp_path: Path) -> None:
    log.start_log(tmp_path, stderr=False, level="debug", style=style)
    try:
        logger = logging.getLogger("kvswap.test")
        logger.warning("one")
        try:
            raise ValueError("two")
        except ValueError:
            logger.exception("it broke")
    finally:
        log.start_log(None)
    first, second = read_records(iter(Tail(tmp_path / log.NAME).more()))
    assert (first.level, first.logger, first.message, first.process) == ("warning", "kvswap.test", "one", os.getpid())
    assert abs(first.at - time.time()) < 60
    assert second.message == "it broke" and second.more[-1] == "ValueError: two"


def test_a_line_that_is_half_written_is_waited_for_and_a_turned_log_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "kvswap.log"
    tail = Tail(path)
    assert tail.more() == []
    path.write_text("one\ntw")
    assert tail.more() == ["one"]
    with path.open("a") as file:
        file.write("o\nthree\n")
    assert tail.more() == ["two", "three"]
    with path.open("a") as file:
        file.write("four\n")
    path.rename(tmp_path / "kvswap.log.1")
    path.write_text("five\n")
    assert tail.more() == ["four", "five"] and tail.more() == []
    path.write_text("six\n")  # somebody emptied it
    assert tail.more() == ["six"]


def test_a_record_shows_when_and_what() -> None:
    at = datetime(2026, 1, 31, 12, 0, 0, 5_000).timestamp()
    assert LogLine(at, "info", "a", 1, "m").to_text() == "2026-01-31 12:00:00.005 info    a: m"


def test_the_daemons_log_is_followed_until_ctrl_c(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    node = daemon("a", "--no-p2p")
    assert "is ready" in kvswap(node.home, "logs").stdout
    with (tmp_path / "out").open("w") as out:
        following = subprocess.Popen(
            [sys.executable, "-m", "kvswap", "--home", str(node.home), "logs", "-f", "-n", "1", "--json"],
            stdout=out,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells start background jobs without
        )
        try:
            until(lambda: "is ready" in (tmp_path / "out").read_text(), what="the last record")
            node.client.gc()  # a request that is logged
            until(lambda: "/v1/gc" in (tmp_path / "out").read_text(), what="a new record")
        finally:
            following.send_signal(signal.SIGINT)
        assert following.wait(60) == 130
