from __future__ import annotations

import logging
from typing import Any

import pytest

from kvswap.core.log import REQUEST
from kvswap.worker import logs
from kvswap.worker.conversation import LogFrame


@pytest.fixture
def forwarded() -> Any:
    """Frames that a model process would send."""
    frames: list[LogFrame] = []
    logger = logging.getLogger("kvswap")
    before = logger.handlers[:], logger.level, logger.propagate
    logs.forward(frames.append)
    yield frames
    logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


def test_only_what_is_our_own_is_forwarded(forwarded: list[LogFrame]) -> None:
    logging.getLogger("kvswap.model").info("opened %s", "m\x1b[31m")
    logging.getLogger("transformers").error("a text that somebody wrote")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("kvswap.worker").exception("failed")
    assert [(f.level, f.logger) for f in forwarded] == [
        (logging.INFO, "kvswap.model"),
        (logging.ERROR, "kvswap.worker"),
    ]
    assert forwarded[0].message == "opened m\\x1b[31m" and "ValueError: why" in str(forwarded[1].trace)


def test_a_node_that_is_gone_ends_no_job() -> None:
    def gone(frame: LogFrame) -> None:
        raise BrokenPipeError

    logger = logging.getLogger("kvswap")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        logs.forward(gone)
        logging.getLogger("kvswap.worker").info("nobody hears it")
    finally:
        logger.handlers[:], logger.level, logger.propagate = before[0], before[1], before[2]


def test_the_node_writes_it_down_with_process_and_request(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.request = REQUEST.get()
            seen.append(record)

    handler, logger = Keep(), logging.getLogger("kvswap.model")
    logger.addHandler(handler)
    token = REQUEST.set("abc")
    try:
        with caplog.at_level(logging.INFO, "kvswap.model"):
            logs.write(LogFrame(level=logging.INFO, logger="kvswap.model", message="x %s", trace="t"), 4321)
            logs.write(LogFrame(level=logging.DEBUG, logger="kvswap.model", message="less than is wanted"), 4321)
    finally:
        REQUEST.reset(token)
        logger.removeHandler(handler)
    (record,) = seen
    assert (record.process, record.getMessage(), record.request, record.trace) == (4321, "x %s", "abc", "t")  # type: ignore[attr-defined]


def test_records_of_other_packages_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logs.write(LogFrame(level=20, logger="root", message="x"), 1)
    assert caplog.records == []
