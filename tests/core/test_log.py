"""The log of a process: what goes where, in which form, and under which request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvswap.core import log
from kvswap.exchange.node.events import EventLog

logger = logging.getLogger("kvswap.some.module")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Leave logging as it was."""
    root, own = logging.getLogger(), logging.getLogger("kvswap")
    handlers, level, own_level = list(root.handlers), root.level, own.level
    yield
    log.start_log(None, stderr=False)
    root.handlers[:] = handlers
    root.setLevel(level)
    own.setLevel(own_level)


def lines(home: Path) -> list[str]:
    """What the log has, once all that waited is written."""
    log.start_log(None, stderr=False)
    return (home / log.NAME).read_text().splitlines()


def test_the_file_has_what_its_level_says_and_standard_error_warnings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.start_log(tmp_path, level="info")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logger.log(level, "%s", logging.getLevelName(level).lower())
    logging.getLogger("another.library").info("chatter")
    assert [line.split(" ", 3)[3] for line in sorted(lines(tmp_path))] == [
        "INFO kvswap.some.module: info",
        "WARNING kvswap.some.module: warning",
    ]
    assert capsys.readouterr().err.splitlines() == ["WARNING kvswap.some.module: warning"]


def test_verbose_says_on_standard_error_what_the_file_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.start_log(tmp_path, level="debug", verbose=True)
    logger.debug("a detail")
    assert capsys.readouterr().err == "DEBUG kvswap.some.module: a detail\n"


def test_json_lines_have_event_request_and_trace(tmp_path: Path) -> None:
    log.start_log(tmp_path, level="info", style="json", stderr=False)
    token = log.REQUEST.set("an-id")
    try:
        EventLog().add(
            "fetched", artifact="kv:1", bytes=5, document="sha256:" + "ab" * 32, reason="no sha256:" + "cd" * 32
        )
        logger.error("it failed", exc_info=ValueError("wrong"))
    finally:
        log.REQUEST.reset(token)
    made = {line["message"].split()[0]: line for line in map(json.loads, lines(tmp_path))}
    assert made["fetched"]["event"] == {"event": "fetched", "artifact": "kv:1", "bytes": 5, "reason": "no sha256:…"}
    assert made["fetched"]["logger"] == "kvswap.exchange.node.events" and made["fetched"]["level"] == "info"
    assert made["it"]["trace"].endswith("ValueError: wrong")
    assert {line["request"] for line in made.values()} == {"an-id"}


def test_a_disk_that_hangs_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    goes_on = threading.Event()
    monkeypatch.setattr(log, "_WAITING", 5)
    monkeypatch.setattr(log, "_CLOSE_SECONDS", 0.01)
    monkeypatch.setattr(log._File, "_open", lambda self: goes_on.wait(600) and None)
    log.start_log(tmp_path, level="info", stderr=False)
    for number in range(1000):  # it returns from all of them, while the first is being written
        logger.info("%d", number)
    (hanging,) = [h for h in logging.getLogger().handlers if isinstance(h, log._File)]
    log.start_log(None, stderr=False)
    logging.shutdown([lambda: hanging])  # as at the end of a process
    assert not goes_on.is_set()
    goes_on.set()
