"""Fixtures.  Model files are shared; everything else is made per test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvswap.core.settings import models_directory
from tests.support import Daemon, tiny_model

_ALONE = {"smollm", "daemon"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `alone` what computes with the default model or starts daemons: it has the machine for itself.

    The rest runs in two workers; see `make test`.
    """
    for item in items:
        if _ALONE & set(getattr(item, "fixturenames", ())) or item.get_closest_marker("swarm"):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of tiny random models by architecture."""
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model(root / kind, kind) for kind in ("llama", "qwen3", "gemma3", "gemma3-wide")}


@pytest.fixture(scope="session")
def smollm() -> Path:
    """The default model; `make test` pulls it before."""
    from kvswap.model.pull import pull

    return pull("smollm2-135m", models_directory())


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Starts daemons; all are ended after the test."""
    started: list[Daemon] = []

    def start(
        name: str, *flags: str, program: tuple[str, ...] = ("kvswap",), wrapper: tuple[str, ...] = (), **env: str
    ) -> Daemon:
        node = Daemon(tmp_path / name, list(flags), env, program, wrapper)
        started.append(node)
        return node.start()

    yield start
    for node in started:
        if node.process is not None and node.process.poll() is None:
            node.stop()
