"""These tests run where a llama-server is installed: `make test-llama`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

collect_ignore_glob = ["test_*.py"] if find_spec("xllamacpp") is None else []

# Its threads that wait in a busy loop take the core that the proxy or another server needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if find_spec("xllamacpp") is not None:
    from tests.llama.proxies import Proxy
    from tests.llama.tiny import write


@pytest.fixture(scope="session")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models with a tokenizer and a template; of `sliding` five layers of six slide."""
    root = tmp_path_factory.mktemp("gguf")
    return {
        "dense": write(root / "dense.gguf", context=8192),
        "other": write(root / "other.gguf", context=8192, seed=2),
        "sliding": write(root / "sliding.gguf", "gemma3", context=8192),
    }


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Starts proxies with their servers; all are ended after the test."""
    started: list[Proxy] = []

    def start(model: Path, *flags: str, home: str = "home", **env: str) -> Proxy:
        one = Proxy(tmp_path / home, model, flags, env)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.end()
