"""`-v`: what a verb does, as log records on standard error: where it looks, what it asks, how long it takes."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvswap.core import log
from kvswap.core.directories import home_directory, models_directory
from kvswap.core.errors import KvswapError
from kvswap.core.version import __version__

_logger = logging.getLogger(__name__)


@contextmanager
def verbosely(words: str, home: str | None) -> Iterator[None]:
    """Send this process's records to standard error while a verb, of these words, runs for a home.

    The clients log each request with its status, its time and the id under which the daemon's log has it.
    """
    log.start_log(None, level="debug", verbose=True)
    began = time.monotonic()
    _logger.info("kvswap %s, Python %s, process %d", __version__, platform.python_version(), os.getpid())
    _logger.info("home %s, models %s", home_directory(home), models_directory())
    try:
        yield
    except KvswapError as error:
        _logger.info("the error is %s, exit code %d", error.code, error.exit_code)
        raise
    finally:
        _logger.info("%s took %.3f s", words, time.monotonic() - began)
