"""What was prefilled is there again after a restart, and answers are those of a server that went on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.llama.proxies import Proxy, document, until

Start = Callable[..., Proxy]
SYSTEM = document(300, "You answer from this manual. ")
TURNS = (SYSTEM, "Who jumps?", "The fox.", "Over whom, and who minds the weather?")


def prompt_tokens(answer: dict[str, Any]) -> int:
    return int(answer["timings"]["cache_n"] + answer["timings"]["prompt_n"])


def cached(answer: dict[str, Any]) -> int:
    return int(answer["timings"]["cache_n"])


def said(answer: dict[str, Any]) -> tuple[Any, Any]:
    """The text and the log-probabilities of an answer."""
    choice = answer["choices"][0]
    tokens = choice["logprobs"]["content"]
    return choice["message"]["content"], [
        [(top["id"], top["logprob"]) for top in token["top_logprobs"]] for token in tokens
    ]


def segment_bytes(proxy: Proxy) -> int:
    return sum(path.stat().st_size for path in (proxy.home / "llama" / "kept").rglob("*") if path.is_file())


WAYS = [
    ("dense", ()),
    ("dense", ("-ctk", "q8_0", "-ctv", "q8_0")),
    ("dense", ("-fa", "off", "-np", "2")),
    ("sliding", ()),
    ("sliding", ("-np", "3", "-kvu", "-ctk", "bf16")),
    ("sliding", ("-np", "2", "-ctk", "q8_0", "-ctv", "q8_0")),
]


@pytest.mark.parametrize(("kind", "flags"), WAYS, ids=str)
def test_a_conversation_goes_on_after_a_restart(
    proxy: Start, ggufs: dict[str, Path], kind: str, flags: tuple[str, ...]
) -> None:
    more = {"tokens": 24, "logprobs": True, "top_logprobs": 4}
    one = proxy(ggufs[kind], *flags)
    first = one.chat(*TURNS[:2])
    assert one.until_saved()["kept_tokens"] >= prompt_tokens(first)
    going_on = one.chat(*TURNS, **more)
    one.until_saved()
    one.restart()
    again = one.chat(*TURNS, **more)
    assert prompt_tokens(again) == prompt_tokens(going_on)
    assert cached(again) >= prompt_tokens(again) - 2, (one.status(), (one.home / "kvswap.log").read_text())
    counts = one.counts()
    assert counts["restores"] == 1 and counts["restores_without_effect"] == 0 and counts["damaged_segments"] == 0
    one.until_saved()
    one.restart()
    once_more = one.chat(*TURNS, **more)
    assert said(once_more) == said(again)  # bit for bit: a restore gives what a restore gave
    if kind == "dense":
        assert said(again)[0] == said(going_on)[0]


def test_a_dense_model_goes_on_bit_for_bit(proxy: Start, ggufs: dict[str, Path]) -> None:
    """128 tokens with the probabilities of four, restored in another process against going on in this one."""
    one = proxy(ggufs["dense"])
    base = document(200)
    one.complete(base, 0)
    one.until_saved()
    question = base + " What does the fox do?"
    more = {"n_probs": 4, "ignore_eos": True}
    going_on = one.complete(question, 128, **more)
    assert cached(going_on) > 0
    one.end(signal.SIGKILL)  # so that what was said just now is not saved
    one.start()
    restored = one.complete(question, 128, **more)
    assert one.counts()["restores"] == 1 and cached(restored) == cached(going_on)
    assert restored["tokens"] == going_on["tokens"] and len(restored["tokens"]) == 128
    assert restored["completion_probabilities"] == going_on["completion_probabilities"]


@pytest.mark.parametrize("kind", ["dense", "sliding"])
def test_only_what_is_new_is_written(proxy: Start, ggufs: dict[str, Path], kind: str) -> None:
    """Each of ten turns writes at most 1.2 times the keys and values of its new tokens."""
    one = proxy(ggufs[kind])
    texts = [SYSTEM]
    token_bytes = {"dense": 2 * 2 * 2 * 64, "sliding": 6 * 2 * 2 * 64}[kind]
    before = {"kept_tokens": 0, "bytes_written": 0}
    for turn in range(10):
        texts.append(document(20 + turn, f"Question {turn}: "))
        answer = one.chat(*texts, tokens=4)
        counts = one.until_saved()
        new, written = (counts[name] - before[name] for name in ("kept_tokens", "bytes_written"))
        assert new > 0 and written <= 1.2 * new * token_bytes + 2048, (turn, written, new * token_bytes)
        before = counts
        texts.append(answer["choices"][0]["message"]["content"])
    assert segment_bytes(one) <= counts["bytes_written"] + 100


def test_a_side_prompt_does_not_cost_the_conversation(proxy: Start, ggufs: dict[str, Path]) -> None:
    """A title is asked for in between, as agents do; without a cache of the server's own it would be lost."""
    one = proxy(ggufs["dense"], "--cache-ram", "0")
    one.chat(*TURNS[:2])
    one.chat("Find a title.", document(30, "Title of: "))  # at once: nothing was saved yet
    again = one.chat(*TURNS)
    assert cached(again) > prompt_tokens(again) // 2
    assert one.until_saved()["restores"] == 1


def test_a_slot_that_holds_more_is_left_alone(proxy: Start, ggufs: dict[str, Path]) -> None:
    one = proxy(ggufs["dense"])
    texts = list(TURNS[:2])
    for turn in range(4):
        answer = one.chat(*texts)
        texts += [answer["choices"][0]["message"]["content"], f"And then ({turn})?"]
        if turn % 2:
            one.until_saved()
    counts = one.until_saved()
    assert counts["restores"] == 0 and counts["left_alone"] == 3


def test_the_longest_of_several_is_restored(proxy: Start, ggufs: dict[str, Path]) -> None:
    one = proxy(ggufs["dense"])
    one.chat(SYSTEM, "First question of many, about foxes?")
    one.until_saved()
    one.chat(SYSTEM, "Second question, about dogs?")
    one.until_saved()
    one.restart()
    answer = one.chat(SYSTEM, "Second question, about dogs?")
    assert cached(answer) >= prompt_tokens(answer) - 2
    other = one.chat(document(300, "You answer from another one. "), "Second question, about dogs?")
    assert one.counts()["restores"] == 1 and cached(other) < 32


def test_nothing_is_used_of_another_model_or_computation(proxy: Start, ggufs: dict[str, Path]) -> None:
    ways: list[tuple[Path, tuple[str, ...]]] = [
        (ggufs["dense"], ()),
        (ggufs["other"], ()),
        (ggufs["dense"], ("--rope-freq-base", "20000")),
        (ggufs["dense"], ("-ctk", "bf16", "-ctv", "bf16")),
    ]
    names = set()
    for model, flags in ways:
        one = proxy(model, *flags)
        names.add(one.status()["identity"])
        assert one.status()["kept"]["bytes"] == 0
        answer = one.chat(*TURNS[:2])
        assert cached(answer) == 0 and one.until_saved()["restores"] == 0
        assert one.end() == 0
    assert len(names) == len(ways)


def test_the_quota_holds_and_what_was_used_last_stays(proxy: Start, ggufs: dict[str, Path]) -> None:
    one = proxy(ggufs["dense"], "--quota", "600K")
    for number in range(6):
        one.complete(document(150, f"Document {number}. "), 0)
        one.until_saved()
        assert one.status()["kept"]["bytes"] <= 600_000 and segment_bytes(one) <= 600_000
    one.restart()
    assert cached(one.complete(document(150, "Document 5. ") + "x", 1)) > 500
    assert cached(one.complete(document(150, "Document 0. ") + "x", 1)) < 300  # what it begins with in common


def test_a_damaged_segment_is_dropped_and_the_answer_is_right(proxy: Start, ggufs: dict[str, Path]) -> None:
    one = proxy(ggufs["dense"])
    right = one.chat(*TURNS)
    one.until_saved()
    one.end()
    files = sorted((one.home / "llama" / "kept").rglob("*.full"), key=lambda path: path.stat().st_size)
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 1
    files[-1].write_bytes(data)
    files[0].write_bytes(b"")
    one.start()
    answer = one.chat(*TURNS)
    assert answer["choices"][0]["message"]["content"] == right["choices"][0]["message"]["content"]
    assert one.until_saved()["damaged_segments"] == 1
    assert not list((one.home / "llama" / "kept").rglob("*.part"))


@pytest.mark.parametrize(
    "body", [{"lora": [{"id": 0, "scale": 0.5}]}, {"n_cache_reuse": 16}], ids=["an adapter", "shifted chunks"]
)
def test_what_changes_a_cache_ends_keeping(proxy: Start, ggufs: dict[str, Path], body: dict[str, Any]) -> None:
    one = proxy(ggufs["dense"])
    one.ask("/completion", {"prompt": SYSTEM, "n_predict": 1} | body)
    status = one.status()
    assert not status["keeping"] and "computation" in status["reason"]
    one.complete(SYSTEM, 1)
    assert one.until_saved()["saves"] == 0


@pytest.mark.parametrize("flags", [("--context-shift",), ("--cache-reuse", "64"), ("--no-slots",)], ids=str)
def test_a_server_whose_cache_is_not_of_its_ids_is_passed_through(
    proxy: Start, ggufs: dict[str, Path], flags: tuple[str, ...]
) -> None:
    one = proxy(ggufs["dense"], *flags)
    assert flags[0] in one.status()["reason"]
    assert one.chat(*TURNS)["choices"]
    assert not list((one.home / "llama").rglob("*.full"))


def test_ids_and_several_slots_and_anthropics_requests(proxy: Start, ggufs: dict[str, Path]) -> None:
    one = proxy(ggufs["dense"], "-np", "2")
    ids = one.post("/tokenize", {"content": SYSTEM, "add_special": True})["tokens"]
    one.complete(ids, 1)
    messages = {
        "max_tokens": 4,
        "system": "Other. " + SYSTEM,
        "messages": [{"role": "user", "content": "q"}],
        "temperature": 0,
    }
    one.post("/v1/messages", messages)
    one.until_saved()
    one.restart()
    assert cached(one.complete([*ids, 70, 71], 1)) >= len(ids) - 1
    usage = one.post("/v1/messages", messages)["usage"]
    assert usage["cache_read_input_tokens"] >= usage["input_tokens"] + usage["cache_read_input_tokens"] - 2
    counts = one.counts()
    assert counts["restores"] == 2 and counts["unlike"] == 0


def test_requests_at_once_all_get_right_answers(proxy: Start, ggufs: dict[str, Path]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    one = proxy(ggufs["dense"], "-np", "2", "-kvu")
    prompts = [document(60 + 5 * number, f"{number}: ") for number in range(6)]
    alone = [one.complete(prompt, 6)["tokens"] for prompt in prompts]
    one.until_saved()
    one.restart()
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda prompt: one.complete(prompt, 6)["tokens"], prompts * 2))
    assert together == alone * 2


def test_a_server_that_dies_is_started_again_and_goes_on(proxy: Start, ggufs: dict[str, Path]) -> None:
    one = proxy(ggufs["dense"])
    one.chat(*TURNS[:2])
    one.until_saved()
    os.kill(one.server_pid(), signal.SIGKILL)
    until(lambda: one.counts()["server_starts"] == 2 and one.status()["keeping"], "it is started again")
    again = one.chat(*TURNS)
    assert cached(again) > prompt_tokens(again) // 2
    log = (one.home / "kvswap.log").read_text()
    assert "llama-server ended" in log and "restored" in log


def test_nothing_is_left_behind(proxy: Start, ggufs: dict[str, Path]) -> None:
    """Neither a process nor a slot file, whether it is ended or killed."""
    import psutil

    one = proxy(ggufs["dense"])
    one.chat(*TURNS[:2])
    killed = set()
    for number in (signal.SIGTERM, signal.SIGKILL):
        assert one.process is not None
        killed.add(one.process.pid)
        server = psutil.Process(one.server_pid())
        one.end(number)
        until(
            lambda server=server: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, "the server ends"
        )
        one.start()
    pids = _owners()
    assert one.process.pid in pids and not killed & pids, "what a killed one left, the next one removes"
    one.end()
    assert one.process.pid not in _owners()
    assert json.loads((one.home / "llama.json").read_text())["url"] == one.url


def _owners() -> set[int]:
    return {int(path.name.split("-")[2]) for path in Path("/dev/shm").glob("kvswap-llama-*-*")}
