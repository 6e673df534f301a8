"""What verbs print for people: a node with a model that has published one document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.ids import document_digest
from tests.support import DOCUMENT, Daemon, kvswap, last_json


@pytest.fixture
def node(daemon: Callable[..., Daemon], tiny_models: dict[str, Path]) -> Daemon:
    return daemon("a", "--no-p2p", "--model", str(tiny_models["llama"]), "--dtype", "float32")


def said(node: Daemon, *arguments: str) -> str:
    done = kvswap(node.home, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_published_document_as_people_see_it(node: Daemon, tmp_path: Path) -> None:
    document = tmp_path / "document.txt"
    document.write_text(DOCUMENT.read_text()[:600])
    before = kvswap(node.home, "ask", str(document), "What?", "--max-tokens", "2", "--ignore-eos")
    assert before.returncode == 0 and "(prefilled here: " in before.stderr
    artifact = last_json(kvswap(node.home, "publish", str(document), "--json"))["artifact"]
    after = kvswap(node.home, "ask", str(document), "What?", "--max-tokens", "2", "--ignore-eos")
    assert after.stdout == before.stdout and "(from a published cache: " in after.stderr

    shown = dict(line.split(maxsplit=1) for line in said(node, "show", artifact).splitlines())
    assert shown["artifact"] == artifact and shown["document"] == document_digest(document.read_bytes())
    assert shown["publisher"] == node.publisher and shown["readers"] == "everybody"
    assert shown["layout"] == "3 layers, float32" and shown["state"] == "complete"
    whole = last_json(kvswap(node.home, "show", artifact, "--json"))
    assert whole["artifact"] == artifact and whole["complete"] and whole["prefix"]["tokens"] > 0

    lines = said(node, "events").splitlines()
    assert any(" published " in line and f"artifact={artifact}" in line for line in lines)
    as_json = [json.loads(line) for line in said(node, "events", "--json").splitlines()]
    assert [event["event"] for event in as_json] == [line.split()[1] for line in lines]
    assert artifact[:12] in said(node, "ls") and node.publisher in said(node, "id")
    assert last_json(kvswap(node.home, "status", "--json"))["artifacts"] == 1 and "model" in said(node, "status")
    assert kvswap(node.home, "peers").returncode == 0


def test_what_a_check_measured_is_said_in_words() -> None:
    from kvswap.api import Check
    from kvswap.cli.commands.verify import _WORDS, _about
    from kvswap.trust.figures import CheckFigures

    def about(why: str = "", **figures: Any) -> str:
        shown = {"step": "V3", "name": "x", "verdict": "passed", "seconds": 0.1, "why": why}
        return _about(Check.from_json(shown | CheckFigures(**figures).to_json()))

    assert about() == "" and about("because", publisher="12D3", withdrawals="none") == "because"
    assert about(positions=9, wrong=0, worst=0, bitwise=True, read_back=True) == (
        "9 positions, none wrong, the farthest off by 0 times what rounding or honest noise explains, the same bits, "
        "tokens read from layer 0, as no text was given"
    )
    assert about(intervals=2, of_intervals=7, chance=285_700).endswith(
        "2 intervals, of 7, a wrong one is found with 29%"
    )
    assert about(tokens_equal=False, logits_equal=False, same_environment=True) == (
        "other tokens, other logits, computed as on the publisher's machine"
    )
    assert about(disputed_with=("a", "b")) == "disputed with a, b" and about(layer=3) == "layer 3"
    assert set(CheckFigures.__struct_fields__) - _WORDS.keys() == {"layer", "first"}  # which say what they are
