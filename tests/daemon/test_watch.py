"""The watch on the event loop sees what holds it up, and excuses what the machine does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvswap.daemon import watch as watching
from kvswap.daemon.watch import PAUSE_SECONDS, Watch
from tests.support import ROOT, Daemon, kvswap, last_json, until

_LONG = 4 * PAUSE_SECONDS


def watched(work: Callable[[Watch], Any], until: Callable[[Watch], bool] = lambda watch: True) -> Watch:
    """Run `work` on a watched loop, again where the machine was too busy for it to count."""
    watch = Watch()

    async def go() -> None:
        watch.begin()
        for _ in range(20):
            await asyncio.sleep(0.1)
            done = work(watch)
            if asyncio.iscoroutine(done):
                await done
            await asyncio.sleep(0.1)
            if until(watch):
                return

    with asyncio.Runner(loop_factory=watch.new_loop) as runner:
        runner.run(go())
    return watch


def computing(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


async def with_the_lock() -> None:
    """A thread keeps Python's lock, as one long call into C does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(10.0)
    try:
        thread = threading.Thread(target=computing, args=(_LONG,))
        thread.start()
        await asyncio.sleep(0.01)
        await asyncio.to_thread(thread.join)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize(
    "work",
    [lambda _: time.sleep(_LONG), lambda _: computing(_LONG), lambda _: with_the_lock()],
    ids=["sleep", "compute", "lock"],
)
def test_what_holds_up_the_loop_is_seen(work: Callable[[Watch], Any]) -> None:
    watch = watched(work, lambda watch: watch.seen.pauses > 0)
    assert watch.seen.pauses > 0
    assert watch.seen.longest > PAUSE_SECONDS
    assert watch.to_json()["pauses"] == watch.seen.pauses


def test_a_process_that_does_nothing_is_woken_seldom() -> None:
    """The watch is always on, and a laptop's battery is not there for it."""
    watch = Watch()

    async def go() -> None:
        watch.begin()
        began = time.monotonic()
        await asyncio.sleep(2.0)
        most.append(8 * (time.monotonic() - began))  # more of them only in more time

    most: list[float] = []
    with asyncio.Runner(loop_factory=watch.new_loop) as runner:
        runner.run(go())
    assert watch._ticks <= most[0]


def test_work_in_another_thread_is_no_pause() -> None:
    watch = watched(lambda _: asyncio.to_thread(time.sleep, _LONG))
    assert watch.seen.pauses == 0 or not watch.measured


def test_what_the_kernel_takes_is_excused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own figures; a machine cannot be made busy to order."""
    taken = {"seconds": 0.0}
    real = watching._delay  # what it does take is excused as well
    monkeypatch.setattr(watching, "_delay", lambda thread: (real(thread) or 0.0) + taken["seconds"])

    def starved(_: Watch) -> None:
        time.sleep(_LONG)
        taken["seconds"] += _LONG

    watch = watched(starved)
    assert watch.seen.pauses == 0
    assert watch.seen.excused >= 1


_STOPPED = """
import asyncio, sys, threading
from kvswap.daemon.watch import Watch
watch = Watch()
async def go():
    watch.begin()
    await asyncio.sleep(0.1)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(watch.seen.pauses, watch.seen.excused, flush=True)
with asyncio.Runner(loop_factory=watch.new_loop) as runner:
    runner.run(go())
"""


def test_a_process_that_was_stopped_is_excused() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        time.sleep(_LONG)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("\n", timeout=600)
    finally:
        process.kill()
        process.wait()
    pauses, excused = map(int, out.split())
    assert pauses == 0
    assert excused >= 1


@pytest.mark.faults
def test_status_shows_the_watch(tmp_path: Path) -> None:
    node = Daemon(tmp_path, ["--no-p2p"]).start()
    try:

        def shown() -> dict[str, Any]:
            return dict(last_json(kvswap(tmp_path, "status", "--json"))["loop"])

        until(lambda: shown()["watched_seconds"] > 0, what="a tenth of a second, which is what is shown")
        loop = shown()
        assert loop["watched_seconds"] > 0
        assert loop["longest_pause_seconds"] >= 0
        assert set(loop) == {"longest_pause_seconds", "pauses", "excused", "watched_seconds", "measured", "queries"}
        assert "\nloop " in kvswap(tmp_path, "status").stdout
    finally:
        node.stop()
