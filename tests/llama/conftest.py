"""These tests run where xllamacpp is installed: `make test-llama`.  There is no torch there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = ["test_*.py"] if find_spec("xllamacpp") is None else []

# Its threads that wait in a busy loop take the core that the proxy or another server needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of this run for what is kept of models and servers."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def _kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSWAP_MODELS", str(kept))  # after tests/conftest.py, which sets it for each test


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models: of full attention, with sliding layers, with another RoPE; and an adapter."""
    from tests.llama import tiny

    folder = tmp_path_factory.mktemp("gguf")
    return {
        "dense": tiny.write(folder / "dense.gguf"),
        "sliding": tiny.write(folder / "sliding.gguf", "gemma3"),
        "lora": tiny.write_lora(folder / "lora.gguf"),
    }


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Any]:
    """Start servers, each ended with the test."""
    from contextlib import ExitStack

    from tests.llama.running import Server

    with ExitStack() as stack:

        def start(model: Path, **settings: Any) -> Server:
            slots = tmp_path / f"slots-{len(list(tmp_path.iterdir()))}"
            slots.mkdir()
            return stack.enter_context(Server(model, slots, **settings))

        yield start


@pytest.fixture(scope="session")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models with a longer context, to be served by a proxy."""
    from tests.llama import tiny

    root = tmp_path_factory.mktemp("served")
    return {
        "dense": tiny.write(root / "dense.gguf", context=8192),
        "other": tiny.write(root / "other.gguf", context=8192, seed=2),
        "sliding": tiny.write(root / "sliding.gguf", "gemma3", context=8192),
    }


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start proxies with their servers; all are ended after the test."""
    from tests.llama.proxies import Proxy

    started: list[Proxy] = []

    def start(model: Path, *flags: str, home: str = "home", **env: str) -> Proxy:
        one = Proxy(tmp_path / home, model, flags, env)
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.end()
