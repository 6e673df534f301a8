"""Server and proxy are killed at random moments: what was answered two seconds before is there again, and right."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.llama.proxies import Proxy, document, until

KILLS = int(os.environ.get("KVSWAP_LLAMA_KILLS", "6"))  # 30 in the benchmark


def test_no_conversation_is_lost_and_no_answer_wrong(proxy: Callable[..., Proxy], ggufs: dict[str, Path]) -> None:
    """Each round goes on with its own conversation; what was settled before the kill has to be found afterwards."""
    rng = random.Random(7)
    one = proxy(ggufs["dense"], "--cache-ram", "0")
    texts = [document(40 + 7 * number, f"{number} is this one. ") for number in range(4)]
    right = [one.complete(text, 6)["tokens"] for text in texts]
    ended: dict[int, float] = {}
    wrong: list[object] = []

    def talk(stop: threading.Event) -> None:
        while not stop.is_set():
            number = rng.randrange(len(texts))
            with contextlib.suppress(OSError, AssertionError, ValueError):
                tokens = one.complete(texts[number], 6)["tokens"]
                ended.setdefault(number, time.monotonic())
                if tokens != right[number]:
                    wrong.append((number, tokens))

    for kill in range(KILLS):
        stop = threading.Event()
        talker = threading.Thread(target=talk, args=(stop,))
        talker.start()
        time.sleep(rng.random() * 2)
        if kill % 2:
            os.kill(one.server_pid(), signal.SIGKILL)
        else:
            one.end(signal.SIGKILL)
        stop.set()
        talker.join()
        if not kill % 2:
            one.start()
        until(lambda: one.status()["keeping"], "it keeps again")
        assert one.status()["counts"]["damaged_segments"] == 0
    assert not wrong
    for number, text in enumerate(texts):
        if number in ended:
            answer = one.complete(text, 6)
            assert answer["tokens"] == right[number]
    one.settled()
    one.end(signal.SIGKILL)
    one.start()
    for number in ended:
        answer = one.complete(texts[number], 6)
        assert answer["tokens"] == right[number]
        assert answer["timings"]["prompt_n"] <= 2, "all of it was kept"
