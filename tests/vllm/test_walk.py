"""The walk of a load inside vLLM is as it is written down."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walks import tool, vllm_walk

pytestmark = [pytest.mark.timeout(600)]


def test_the_walk_of_a_load_is_as_it_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # as `vllm_walk` sets it, and taken back afterwards
    walk, written = vllm_walk(tmp_path), tool().load()["vllm"]
    said = "python -m tests.walks; the calls:\n" + "\n".join(dict.fromkeys(walk["calls"]))
    assert walk["files"] == written["files"], said
    assert walk["again"].keys() == written["again"].keys(), said
