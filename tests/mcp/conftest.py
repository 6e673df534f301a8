"""A node with a tiny model that has published one document, for all tests of the tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mcp.published import TEXT
from tests.support import Daemon


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Iterator[Daemon]:
    """A node for itself, that takes no part in the network."""
    home = tmp_path_factory.mktemp("mcp") / "node"
    daemon = Daemon(home, ["--no-p2p", "--model", str(tiny_models["llama"])]).start()
    daemon.client.publish(TEXT)
    yield daemon
    daemon.stop()
