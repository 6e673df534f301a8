"""Upkeep loops go on whatever a step raises; writing threads lose nothing but the item that failed."""

import asyncio
import sqlite3
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.errors import P2pDown
from kvswap.core.upkeep import Backoff, Problems, Writer, forever, forever_in_thread

ERRORS = [
    sqlite3.DatabaseError("malformed"),
    ValueError("no number"),
    OSError(28, "No space left on device"),
    P2pDown("it stopped"),
    ExceptionGroup("two", [KeyError("a"), TypeError("b")]),
    TimeoutError(),
    RecursionError("too deep"),
]


async def run(steps, **more):
    """Steps until they are used up (None: works, an exception: raised); what was shown after each, and the pauses."""
    problems, shown, pauses, left = Problems(), [], [], list(steps)
    over = asyncio.Event()

    async def step():
        if not left:
            over.set()
            await asyncio.Event().wait()
        outcome = left.pop(0)
        if outcome is not None:
            raise outcome

    async def sleep(seconds):
        shown.append(problems.get("part"))
        pauses.append(seconds)
        await asyncio.sleep(0)

    task = asyncio.create_task(forever("part", step, problems, pause=7.0, sleep=sleep, **more))
    await over.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return shown, pauses


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_loop_survives_any_error_shows_it_and_clears_it(error):
    shown, pauses = asyncio.run(run([None, error, error, None]))
    assert shown[0] is None and shown[3] is None
    assert shown[1] == shown[2] and shown[1]
    assert pauses == [7.0, 1.0, 2.0, 7.0]


def test_the_text_of_our_own_errors_is_their_message_and_others_are_named():
    shown, _ = asyncio.run(run([P2pDown("it stopped"), ValueError("no number")]))
    assert shown == ["it stopped", "ValueError: no number"]


@given(st.lists(st.sampled_from([None, *ERRORS]), max_size=40))
@settings(max_examples=50, deadline=None)
def test_pauses_grow_to_the_cap_and_start_over(steps):
    shown, pauses = asyncio.run(run(steps, backoff=Backoff(0.5, 4.0)))
    failures = 0
    for outcome, text, pause in zip(steps, shown, pauses, strict=True):
        failures = 0 if outcome is None else failures + 1
        assert pause == (7.0 if outcome is None else min(4.0, 0.5 * 2 ** (failures - 1)))
        assert (text is None) == (outcome is None)


def test_a_step_that_was_cancelled_from_inside_is_an_error_and_not_the_end():
    shown, _ = asyncio.run(run([asyncio.CancelledError(), None]))
    assert shown[0] and shown[1] is None


def test_a_step_that_swallows_the_cancellation_does_not_keep_the_loop_alive():
    async def main():
        began = asyncio.Event()

        async def step():
            began.set()
            await asyncio.gather(asyncio.sleep(3600), return_exceptions=True)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return

        task = asyncio.create_task(forever("part", step, Problems(), pause=0.0))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_what_changes_is_told_once():
    told = []
    asyncio.run(run([None, *ERRORS[:1] * 3, None, None], on_problem=lambda name, text: told.append((name, text))))
    assert told == [("part", "DatabaseError: malformed"), ("part", None)]


def test_a_loop_in_a_thread_goes_on_and_ends():
    problems, closed, worked = Problems(), threading.Event(), threading.Event()
    seen, left = [], [ValueError("x"), OSError("y")]

    def step():
        seen.append(problems.get("part"))
        if left:
            raise left.pop(0)
        worked.set()

    thread = threading.Thread(
        target=forever_in_thread, args=("part", step, closed, problems), kwargs={"pause": 0.0, "backoff": Backoff(0, 0)}
    )
    thread.start()
    worked.wait()
    closed.set()
    thread.join()
    assert seen[:3] == [None, "ValueError: x", "OSError: y"] and "part" not in problems


# -- writers -------------------------------------------------------------------------------------


def test_a_writer_survives_errors_gives_back_and_reports():
    problems, done = Problems(), []

    def work(batch):
        for item in batch:
            if item % 3 == 0:
                raise OSError(5, "Input/output error")
            done.append(item)

    writer = Writer("writing", work, budget=4, batch=1, problems=problems)
    for item in range(30):  # each is as large as the whole budget: the next one waits for what is given back
        writer.add(item, 4)
    writer.close()
    assert done == [i for i in range(30) if i % 3]
    assert writer.waiting_bytes == 0
    assert not writer.alive
    assert "writing" not in problems  # the last one went well


def test_the_problem_stands_while_nothing_works():
    problems = Problems()

    def work(batch):
        raise sqlite3.OperationalError("database or disk is full")

    writer = Writer("writing", work, budget=100, problems=problems)
    writer.add(1, 1)
    writer.close()
    assert problems["writing"] == "OperationalError: database or disk is full"


def test_one_that_is_larger_than_the_budget_goes_alone():
    done = []
    writer = Writer("writing", done.extend, budget=4)
    writer.add("large", 100)
    writer.add("small", 1)
    writer.close()
    assert done == ["large", "small"]


def test_without_a_thread_the_caller_does_the_work(monkeypatch):
    def no_more(self):
        raise RuntimeError("can't start new thread")

    done = []
    writer = Writer("writing", done.extend, budget=4)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        for item in range(3):
            writer.add(item, 4)
        assert done == [0, 1, 2] and writer.waiting_bytes == 0
    writer.add(3, 1)
    writer.close()
    writer.add(4, 1)  # after the end: nothing is lost
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_replaced():
    done, fatal = [], [True]

    def work(batch):
        if fatal:
            fatal.clear()
            raise SystemExit  # not an error that is survived
        done.extend(batch)

    writer = Writer("writing", work, budget=1)
    writer.add("lost", 1)
    writer.add("kept", 1)
    writer.close()
    assert done == ["kept"]


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_many_writers_at_once_lose_nothing(data):
    sizes = data.draw(st.lists(st.integers(0, 10), min_size=1, max_size=30))
    bad = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    done = []

    def work(batch):
        for item in batch:
            if item in bad:
                raise ValueError(item)
            done.append(item)

    writer = Writer("writing", work, budget=8, batch=1)
    threads = [threading.Thread(target=writer.add, args=(i, size)) for i, size in enumerate(sizes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert sorted(done) == [i for i in range(len(sizes)) if i not in bad]
    assert writer.waiting_bytes == 0
