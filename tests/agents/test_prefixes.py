"""Prefixes of conversations and folders, published and asked for by the command line, on a real daemon."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import NotFound, UsageError
from tests.agents.chats import MESSAGES, SYSTEM, TOOLS, TOOLS_TEMPLATE, TURNS, with_template
from tests.families import build
from tests.support import Daemon, kvswap, last_json

pytestmark = pytest.mark.agents

BLOCK = 32


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_template(tiny_models["llama"], tmp_path_factory.mktemp("chats") / "m", TOOLS_TEMPLATE, begins=True)


def node_of(home: Path, model: Path) -> Daemon:
    return Daemon(home, ["--no-p2p", "--model", str(model)], {"KVSWAP_BLOCK_TOKENS": str(BLOCK)}).start()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Daemon]:
    daemon = node_of(tmp_path_factory.mktemp("agents") / "node", model)
    yield daemon
    daemon.stop()


def written(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def test_a_conversations_prefix_is_published_and_longer_ones_begin_with_it(
    node: Daemon, model: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    head, tools = written(tmp_path / "head.json", [SYSTEM]), written(tmp_path / "tools.json", TOOLS)
    said = kvswap(node.home, "publish", "--chat", head, "--tools", tools)
    assert said.returncode == 0 and "its parts end after" in said.stderr, said.stderr
    made = last_json(kvswap(node.home, "publish", "--chat", head, "--tools", tools, "--json"))
    assert made["reused"] and made["checkpoints"] == []  # no states: the ends of blocks do

    chat = written(tmp_path / "chat.json", {"messages": MESSAGES[:3], "tools": TOOLS})
    answer = last_json(kvswap(node.home, "ask", "--chat", chat, "How many?", "--max-tokens", "6", "--json"))
    assert answer["artifact"] == made["artifact"]
    assert 0 < answer["fetched_tokens"] <= made["tokens"] and answer["fetched_tokens"] % BLOCK == 0
    alone = last_json(kvswap(node.home, "ask", "--chat", chat, "How many?", "--max-tokens", "6", "--prefill", "--json"))
    assert alone["artifact"] is None and answer["logits_digest"] == alone["logits_digest"]

    # As an engine asks: by the tokens of the whole prompt.
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer.apply_chat_template(MESSAGES, tools=TOOLS, add_generation_prompt=True)["input_ids"]
    details = node.client.show(made["artifact"])
    found = node.client.cached_prefix(
        struct.pack(f"<{len(ids)}I", *ids), model=bytes.fromhex(details.model), dtype=details.dtype, block_tokens=BLOCK
    )
    assert (found.artifact, found.tokens, found.whole) == (made["artifact"], made["tokens"], True)


def test_a_conversation_that_grew_is_computed_from_where_it_grew(node: Daemon, tmp_path: Path) -> None:
    head = written(tmp_path / "a.json", [SYSTEM, TURNS[0]])
    before = last_json(kvswap(node.home, "publish", "--chat", head, "--json"))
    head = written(tmp_path / "b.json", [SYSTEM, *TURNS])
    after = last_json(kvswap(node.home, "publish", "--chat", head, "--json"))
    assert after["reused_tokens"] == before["tokens"] // BLOCK * BLOCK > 0


def test_a_folder_is_one_document_and_a_change_keeps_its_beginning(node: Daemon, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"This is text number {number}. " * 12)
    (folder / ".gitignore").write_text("*.log\n")
    (folder / "x.log").write_text("not this")
    (folder / "y.bin").write_bytes(b"\xff\0")
    first = last_json(kvswap(node.home, "publish", str(folder), "--json"))
    assert [file["path"] for file in first["files"]] == [f"{number}.txt" for number in range(6)]
    assert first["left_out"] == ["y.bin"]
    (folder / "5.txt").write_text("Another text at the end. " * 12)
    said = kvswap(node.home, "publish", str(folder))
    assert "tokens as published before" in said.stdout and "6 files" in said.stdout and "y.bin" in said.stderr
    second = last_json(kvswap(node.home, "publish", str(folder), "--json"))
    assert second["reused"] and second["artifact"] != first["artifact"]
    answer = last_json(kvswap(node.home, "ask", str(folder), "What?", "--max-tokens", "4", "--json"))
    assert answer["artifact"] == second["artifact"]
    assert kvswap(node.home, "verify", second["artifact"], "--level", "7").returncode == 0  # all computed again


def test_what_is_asked_for_in_a_wrong_way_says_how(node: Daemon, tmp_path: Path) -> None:
    chat = written(tmp_path / "chat.json", MESSAGES)
    for line in (
        ("publish",),
        ("publish", chat, "--chat", chat),
        ("publish", chat, "--tools", chat),
        ("ask", "--chat", chat, "x", "y"),
        ("ask", "only-one"),
        ("publish", "--chat", written(tmp_path / "wrong.json", {"x": 1})),
        ("publish", "--chat", written(tmp_path / "role.json", [{"role": "king", "content": "x"}])),
    ):
        assert kvswap(node.home, *line).returncode == 2, line
    (tmp_path / "broken.json").write_text("{")
    assert "is not JSON" in kvswap(node.home, "publish", "--chat", str(tmp_path / "broken.json")).stderr


def test_states_are_held_at_the_ends_of_parts(tmp_path: Path) -> None:
    model = with_template(build(tmp_path / "lfm2", "lfm2"), tmp_path / "chat", TOOLS_TEMPLATE)
    daemon = node_of(tmp_path / "node", model)
    try:
        messages = [SYSTEM, *TURNS]
        rendered = daemon.client.render(messages, TOOLS)
        assert rendered.states and rendered.checkpoints
        done = daemon.client.publish(rendered.text, checkpoints=rendered.checkpoints)
        assert set(rendered.checkpoints) <= set(done.checkpoints)
        kinds = [part.part for part in rendered.parts]
        assert kinds[:2] == ["system", "tools"] and kinds.count("message") == len(messages)
    finally:
        daemon.stop()


def test_a_model_without_a_template_says_so(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    daemon = node_of(tmp_path / "node", tiny_models["qwen3"])
    try:
        with pytest.raises(UsageError, match="no chat template"):
            daemon.client.render(MESSAGES)
        with pytest.raises(NotFound):
            daemon.client.fetch("sha256:" + 64 * "0")
    finally:
        daemon.stop()
