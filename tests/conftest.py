"""Fixtures.  Model files are shared; everything else is made per test."""

from __future__ import annotations

import os
import sys

# Threads of torch that wait in a busy loop take the core that another test needs.  The model process is started so by
# the daemon; here it is said for tests that compute themselves, before anything starts threads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
# A tiny model takes three times the CPU with two threads, which mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from kvswap.core.directories import models_directory
from tests.support import ROOT, Daemon, tiny_model

PULLED = models_directory()  # of the user
MODELS = ROOT / "tests" / "fixtures" / "models"

# Its deadline of 200 ms for an example, and its complaint of slow ones, are of the machine.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

pytest_plugins = ("tests.clock", "tests.covering", "tests.spending")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `model` what computes with the default model: it takes both cores, and has a tier of its own."""
    for item in items:
        if "smollm" in getattr(item, "fixturenames", ()):
            item.add_marker("model")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Show a test no models of the user's, and leave the environment as it was before.

    A command that lists models reads gigabytes of the user's; in their place is one of a few bytes by the default
    model's name, which is no model to compute with.  Tests of `make test-model` have the user's, and every core to
    compute with.  Libraries write into the environment, and `warm` would start nothing any more.
    """
    before, threads = dict(os.environ), None
    if item.get_closest_marker("model") is None:
        os.environ["KVSWAP_MODELS"] = str(MODELS)
    else:
        threads = _use_threads(os.cpu_count())
        del os.environ["OMP_NUM_THREADS"]
    done = yield
    _use_threads(threads)
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)
    return done


def _use_threads(number: int | None) -> int | None:
    """Let torch compute with so many threads here, if it was imported; returns how many it had."""
    torch = sys.modules.get("torch")
    if torch is None or number is None:
        return None
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    return int(before)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny random models by architecture."""
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(root / kind, kind) for kind in ("llama", "qwen3", "gemma3", "gemma3-wide")}


@pytest.fixture(scope="session")
def default_model() -> Path:
    """Directory of the default model, for its files alone; `make test` pulls it before."""
    from kvswap.model.pull import pull

    return pull("smollm2-135m", PULLED)


@pytest.fixture(scope="session")
def smollm(default_model: Path) -> Path:
    """Directory of the default model, to compute with."""
    return default_model


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; all are ended after the test."""
    started: list[Daemon] = []

    def start(
        name: str,
        *flags: str,
        program: tuple[str, ...] = ("kvswap",),
        wrapper: tuple[str, ...] = (),
        cold: bool = False,
        **env: str,
    ) -> Daemon:
        node = Daemon(tmp_path / name, list(flags), env, program, wrapper, cold)
        started.append(node)
        return node.start()

    yield start
    for node in started:
        if node.process is not None and node.process.poll() is None:
            node.stop()
