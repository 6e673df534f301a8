"""These tests run where xllamacpp is installed: `make test-llama`.  There is no torch there."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = ["test_*.py"] if find_spec("xllamacpp") is None else []


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
