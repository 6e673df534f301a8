"""`kvswap advise` on logs: prefixes that are worth publishing, breaks by kind and place, lines that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvswap.advice.study import AdviceScope, advise
from kvswap.core.errors import UsageError
from kvswap.model.chat import alike, read_format
from tests.agents.chats import MESSAGES, SYSTEM, THINKING_TEMPLATE, TOOLS, TOOLS_TEMPLATE, with_template
from tests.support import kvswap, last_json

BLOCK = 16


@pytest.fixture(scope="module")
def models(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("advised")
    plain = tiny_models["llama"]
    return {
        "tools": with_template(plain, root / "tools", TOOLS_TEMPLATE),
        "begins": with_template(plain, root / "begins", TOOLS_TEMPLATE, begins=True),
        "thinking": with_template(plain, root / "thinking", THINKING_TEMPLATE),
    }


def log(path: Path, *requests: Any) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in requests))
    return path


def conversations(system: Any = SYSTEM, count: int = 4) -> list[dict[str, Any]]:
    """Requests of conversations that grow, in turns."""
    requests = []
    for turn in range(1, 4):
        for number in range(count):
            told = [{"role": "user", "content": f"I am {'abcd'[number]}. Go on."}, *MESSAGES[2:]]
            head = system(number * 10 + turn) if callable(system) else system
            requests.append({"messages": [head, *told[: 2 * turn - 1]], "tools": TOOLS})
    return requests


@pytest.mark.parametrize("kind", ["tools", "begins", "thinking"])
def test_counts_are_those_of_whole_prompts(models: dict[str, Path], kind: str, tmp_path: Path) -> None:
    form = read_format(models[kind])
    requests = conversations()
    made = advise(form, kind, log(tmp_path / "log", *requests), AdviceScope(BLOCK))
    first = [0] * form.before
    prompts = [first + form.encode(form.render(r["messages"], r["tools"])) for r in requests]
    assert made.tokens == sum(map(len, prompts)) and made.requests == len(requests)
    assert made.distinct_tokens == len({tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)})
    best = made.prefixes[0]
    assert best.requests == len(requests) and best.messages == 1
    common = min(alike(prompts[0], other) for other in prompts[1:])
    assert best.tokens == common // BLOCK * BLOCK
    assert best.saved_tokens == (len(requests) - 1) * best.tokens
    assert made.saved_tokens == sum(prefix.saved_tokens for prefix in made.prefixes)
    assert made.breaks == []


def test_texts_are_written_to_be_published(models: dict[str, Path], tmp_path: Path) -> None:
    form = read_format(models["begins"])
    requests = conversations()
    made = advise(form, "x", log(tmp_path / "log", *requests), AdviceScope(BLOCK, directory=tmp_path))
    for prefix in made.prefixes:
        text = Path(prefix.file or "").read_text()
        request = requests[prefix.line - 1]
        assert form.render(request["messages"], request["tools"]).startswith(text)
        assert len(form.encode(text)) + form.before >= prefix.tokens
        assert text.endswith(prefix.ends)


def test_a_time_in_the_system_text_is_what_breaks_sharing(models: dict[str, Path], tmp_path: Path) -> None:
    def clock(number: int) -> dict[str, Any]:
        return {"role": "system", "content": f"It is 2026-11-28T10:{number:02}:00Z. " + SYSTEM["content"]}

    form = read_format(models["tools"])
    made = advise(form, "x", log(tmp_path / "log", *conversations(clock)), AdviceScope(BLOCK))
    worst = made.breaks[0]
    assert (worst.kind, worst.message, worst.role) == ("timestamp", 0, "system")
    assert worst.requests == 11 and worst.lost_tokens > 11 * len(form.encode(SYSTEM["content"]))
    assert worst.one.startswith("2026-11-28T10:") and worst.other.startswith("2026-11-28T10:")


def test_tools_in_another_order_are_what_breaks_sharing(models: dict[str, Path], tmp_path: Path) -> None:
    requests = conversations()
    for number, request in enumerate(requests):
        request["tools"] = TOOLS if number % 2 else TOOLS[::-1]
    other = {**requests[0], "tools": [dict(reversed(tool.items())) for tool in TOOLS[::-1]]}
    made = advise(read_format(models["tools"]), "x", log(tmp_path / "log", *requests, other), AdviceScope(BLOCK))
    assert {place.kind for place in made.breaks} >= {"tool order"}
    assert made.breaks[0].message == 0


def test_lines_that_are_no_requests_are_passed_over(models: dict[str, Path], tmp_path: Path) -> None:
    form = read_format(models["tools"])
    wrapped = {"custom_id": "1", "body": {"messages": MESSAGES, "tools": TOOLS}}
    path = log(tmp_path / "log", "no json", {"input": "x"}, {"messages": [{"role": "x"}]}, "", wrapped)
    made = advise(form, "x", path, AdviceScope(BLOCK))
    assert (made.requests, made.skipped) == (1, 3)
    assert str(made.why_skipped).startswith("line 1: it is not JSON")
    for nothing in ([], ["no json"]):
        with pytest.raises(UsageError, match="no request"):
            advise(form, "x", log(tmp_path / "none", *nothing), AdviceScope(BLOCK))


def test_the_command_says_it_in_words_and_in_json(models: dict[str, Path], tmp_path: Path) -> None:
    path = log(tmp_path / "log", *conversations(), "no json")
    line = ("advise", str(path), "--model", str(models["tools"]), "--out", str(tmp_path / "out"))
    said = kvswap(tmp_path / "home", *line)
    assert said.returncode == 0 and "Worth publishing" in said.stdout, said.stderr
    assert "1 lines were passed over" in said.stderr and "kvswap publish" in said.stderr
    made = last_json(kvswap(tmp_path / "home", *line, "--json"))
    assert made["requests"] == 12 and Path(made["prefixes"][0]["file"]).is_file()
