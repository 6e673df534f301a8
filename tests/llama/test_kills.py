"""Server and proxy are killed at random moments: what was answered two seconds before is there again, and right."""

from __future__ import annotations

import contextlib
import http.client
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
    """Each round goes on with its own conversation; what was saved before the last kill has to be found afterwards."""
    rng = random.Random(7)
    one = proxy(ggufs["dense"], "--cache-ram", "0")
    texts = [document(40 + 7 * number, f"{number} is this one. ") for number in range(4)]
    right = [one.complete(text, 6)["tokens"] for text in texts]
    ended: set[int] = set()
    wrong: list[object] = []

    def talk(stop: threading.Event) -> None:
        while not stop.is_set():
            number = rng.randrange(len(texts))
            with contextlib.suppress(OSError, AssertionError, ValueError, http.client.HTTPException):
                tokens = one.complete(texts[number], 6)["tokens"]
                ended.add(number)
                if tokens != right[number]:
                    wrong.append((number, tokens))

    for kill in range(KILLS):
        stop = threading.Event()
        talker = threading.Thread(target=talk, args=(stop,))
        talker.start()
        time.sleep(rng.random() * 2)
        starts = one.counts()["server_starts"]
        if kill % 2:
            os.kill(one.server_pid(), signal.SIGKILL)
        else:
            one.end(signal.SIGKILL)
            starts = 0
        stop.set()
        talker.join()
        if not kill % 2:
            one.start()
        until(
            lambda starts=starts: (s := one.status())["keeping"] and s["counts"]["server_starts"] > starts, "it keeps"
        )
        assert one.status()["counts"]["damaged_segments"] == 0
    assert not wrong
    for number, text in enumerate(texts):
        if number in ended:
            answer = one.complete(text, 6)
            assert answer["tokens"] == right[number]
    one.until_saved()
    one.end(signal.SIGKILL)
    one.start()
    for number in ended:
        answer = one.complete(texts[number], 6)
        assert answer["tokens"] == right[number]
        assert answer["timings"]["prompt_n"] <= 2, "all of it was kept"
