"""The paper's experiment, on a model that is small enough for it to be quick."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvswap.bench import nodes, page, paper
from kvswap.bench.texts import Cutter, read_texts
from kvswap.core.errors import InvalidDocument, KvswapError, UsageError
from tests import warm
from tests.support import DOCUMENT, ROOT, kvswap


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    whole = DOCUMENT.read_text()
    directory = tmp_path / "texts"
    directory.mkdir()
    (directory / "long.txt").write_text(whole[:9000])
    (directory / "short.txt").write_text(whole[9000:10_000])
    (directory / "binary").write_bytes(bytes(range(256)))
    return directory


def test_texts_are_cut_by_tokens_and_never_begin_alike(tiny_models: dict[str, Path], texts: Path) -> None:
    cutter = Cutter(tiny_models["llama"])
    (long, whole), _ = read_texts(texts)
    assert long == "long.txt"
    for tokens in (64, 65, 200):
        piece = cutter.cut(whole, tokens, title=f"{tokens}")
        assert len(cutter._tokenizer.encode(piece).ids) == tokens and piece.startswith(f"{tokens}\n\n")
    with pytest.raises(InvalidDocument):
        cutter.cut("short", 64)
    empty = texts / "none"
    empty.mkdir()
    with pytest.raises(UsageError):
        read_texts(empty)
    assert len(read_texts(None)) >= 5


@pytest.fixture
def warm_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiment's daemons are forked, as those of all tests are; a test below starts one by its command."""
    if warm.able(os.environ):
        monkeypatch.setattr(
            nodes,
            "_start_daemon",
            lambda arguments, env, log: warm.start(["kvswap"], arguments, env, ROOT, log.fileno()),
        )


def test_a_node_of_an_experiment_starts_by_a_command(tmp_path: Path) -> None:
    with nodes.BenchNode("--no-p2p", idle_unload_seconds=5) as node:
        assert node.ready["publisher"]
        assert 5 in [row.value for row in node.client.config().settings if row.name == "idle_unload_seconds"]
        home = node.home
    assert not home.exists()
    with pytest.raises(KvswapError, match="did not start"), nodes.BenchNode("--no-such-option"):
        pass


def test_the_experiment_and_its_report(tiny_models: dict[str, Path], texts: Path, warm_nodes: None) -> None:
    told: list[str] = []
    report = paper.run(
        str(tiny_models["llama"]),
        tiny_models["llama"],
        read_texts(texts),
        dtype="float32",
        lengths=(100, 300, 100_000),
        steps=24,
        documents=2,
        note=told.append,
    )
    assert [row.tokens for row in report.rows] == [100, 300]
    assert any(note.startswith("100000 tokens are left out") for note in told)
    for row in report.rows:
        assert set(row.stored.seconds) == {1, 24, 100} and row.stored.prefill == 0 < row.one_shot.prefill
        assert row.wire_bytes < row.raw_bytes and row.stored.load > 0 and row.fetch_seconds > 0
    assert [e.logits for e in report.equality] == [True, True]
    assert all(e.equal == e.steps == 24 for e in report.equality)
    assert set(report.sizes) == {"raw", "planes", "int8"} and report.sizes["int8"] < report.sizes["raw"]
    text = page.page(report)
    assert "identical" in text and report.machine.split(",")[0] in text
    ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    json.dumps(report.to_json())


def test_a_model_that_is_not_here_is_said() -> None:
    done = kvswap(Path("/nonexistent"), "bench", "paper", "--model", "no-such-model")
    assert done.returncode == 2 and "no-such-model" in done.stderr
