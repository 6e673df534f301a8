"""Model processes: one model's load or fault holds up no other's requests, and jobs end whatever is cancelled when."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.errors import Incompatible, KvswapError, WorkerFailed
from kvswap.core.settings import Settings
from kvswap.daemon.child import Patience
from kvswap.daemon.supervisor import ModelProcess
from kvswap.exchange.model_port import ModelChoice
from kvswap.worker.conversation import ArrivalNotice
from kvswap.worker.messages import Job
from tests.support import identity, run

FAKE = (sys.executable, "-P", str(Path(__file__).with_name("fake_worker.py")))

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def _directories_are_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvswap.model.catalogue.resolve", lambda name, models: Path(name))


@asynccontextmanager
async def processes(home: Path, patience: Patience | None = None, **changes: Any) -> AsyncIterator[ModelProcess]:
    made = ModelProcess(Settings(home=home, models=home, **changes), program=FAKE, patience=patience)
    try:
        yield made
    finally:
        await made.stop()


def model(home: Path, name: str) -> ModelChoice:
    directory = home / name
    directory.mkdir(exist_ok=True)
    return ModelChoice(str(directory), identity(name), "bfloat16", "cpu", 1)


class FakeJob(Job[dict[str, Any]], frozen=True, kw_only=True, tag="fake"):
    """A job of `fake_worker`: which, and with what."""

    do: str
    given: dict[str, Any]


async def run_fake(
    p: ModelProcess, choice: ModelChoice, name: str, on_event: Any = None, outbox: Any = None, **given: Any
) -> dict[str, Any]:
    return await p.run(choice, FakeJob(do=name, given=given), on_event, outbox)


class Heard:
    """Events of a job, and the first of them."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.first = asyncio.Event()

    async def __call__(self, event: Any) -> None:
        self.events.append(event)
        self.first.set()


# -- jobs end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_job_cancelled_any_number_of_times_leaves_the_next_ones_alone(times: int, tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path) as p:
            choice, heard = model(tmp_path, "a"), Heard()
            job = asyncio.create_task(run_fake(p, choice, "until_cancelled", heard, slow=0.3))
            await heard.first.wait()
            waiting = [asyncio.create_task(run_fake(p, choice, "echo", value=n)) for n in range(3)]
            for _ in range(times):
                job.cancel()
                await asyncio.sleep(0.02)
            with pytest.raises(asyncio.CancelledError):
                await job
            assert [await w for w in waiting] == [{"value": n} for n in range(3)]
            assert p.starts == 1  # it obeyed: there is no reason for another

    run(body())


def test_one_that_does_not_obey_is_killed_and_replaced(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path, Patience(cancel=0.3)) as p:
            choice, heard = model(tmp_path, "a"), Heard()
            job = asyncio.create_task(run_fake(p, choice, "deaf", heard))
            await heard.first.wait()
            process = psutil.Process(p.pid)
            job.cancel()
            await asyncio.sleep(0)
            job.cancel()
            with pytest.raises(asyncio.CancelledError):
                await job
            assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
            assert await run_fake(p, choice, "echo", value=1) == {"value": 1}
            assert p.starts == 2

    run(body())


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["echo", "until_cancelled", "events", "die", "leave", "garbage", "no_answer"]),
            st.lists(st.integers(0, 30), max_size=3),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=6, deadline=None)
def test_whatever_is_cancelled_when_every_job_ends_and_the_last_one_works(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[tuple[str, list[int]]]
) -> None:
    """Each job with the milliseconds after which it is cancelled: while it waits, loads, runs or settles."""
    home = tmp_path_factory.mktemp("home")
    arguments: dict[str, dict[str, Any]] = {"echo": {"value": 7}, "events": {"count": 20}, "until_cancelled": {}}

    async def body() -> None:
        async with processes(home) as p:
            choice = model(home, "a")

            async def one(name: str, after: list[int]) -> None:
                task = asyncio.create_task(run_fake(p, choice, name, **arguments.get(name, {})))
                for milliseconds in after:
                    await asyncio.sleep(milliseconds / 1000)
                    task.cancel()
                if name == "until_cancelled" and not after:
                    await asyncio.sleep(0.05)
                    task.cancel()
                try:
                    await task
                    assert name in arguments
                except asyncio.CancelledError:
                    assert after or name == "until_cancelled"
                except WorkerFailed as error:
                    assert error.cause and error.exit_code == 1

            await asyncio.gather(*(one(name, after) for name, after in jobs))
            assert await run_fake(p, choice, "echo", value=1) == {"value": 1}
            assert len(p.processes) == 1 and all(not s.users for s in p._slots)

    run(body())


# -- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["die", "leave", "garbage", "no_answer", "freeze", "sleep"])
def test_a_process_that_fails_is_told_of_ended_and_replaced(job: str, tmp_path: Path) -> None:
    async def body() -> None:
        patience = Patience(silent=4.0 if job == "freeze" else 60.0, stalled=2.0)
        async with processes(tmp_path, patience) as p:
            choice = model(tmp_path, "a")
            pid = (await run_fake(p, choice, "who"))["pid"]
            with pytest.raises(WorkerFailed) as failed:
                await run_fake(p, choice, job, **({"seconds": 3600} if job == "sleep" else {}))
            assert failed.value.exit_code == 1 and failed.value.cause and failed.value.hint
            assert p.problems["model process"] == failed.value.message
            assert p.crashes == 1
            assert not psutil.pid_exists(pid)
            assert (await run_fake(p, choice, "who"))["pid"] != pid
            assert "model process" not in p.problems

    run(body())


def test_work_and_what_is_told_count_as_life(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path, Patience(silent=60, stalled=2.0)) as p:  # a busy machine may not let it run
            choice = model(tmp_path, "a")
            await run_fake(p, choice, "spin", seconds=4.0)
            tell: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

            async def slowly() -> None:
                for number in range(15):
                    await asyncio.sleep(0.3)
                    tell.put_nowait(ArrivalNotice(unit=number))

            telling = asyncio.create_task(slowly())
            done = await run_fake(p, choice, "tells", None, tell, count=15)
            assert done["heard"] == list(range(15))
            await telling

    run(body())


def test_noise_and_questions_do_not_get_between_the_frames(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path) as p:
            choice = model(tmp_path, "a")
            assert await run_fake(p, choice, "chatter") == {"read": ""}
            assert await run_fake(p, choice, "echo", value=2) == {"value": 2}
            with pytest.raises(WorkerFailed, match="EOF"):
                await run_fake(p, model(tmp_path, "asks"), "echo")
            assert p.crashes == 0

    run(body())


def test_the_current_directory_is_not_on_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["queue", "json", "torch", "random", "numpy", "kvswap", "sitecustomize", "mine"]
    here = tmp_path / "here"
    here.mkdir()
    for name in names:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)")
    monkeypatch.chdir(here)
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    for path in ("", ":", ".", f"{other}:", f":{other}:."):
        monkeypatch.setenv("PYTHONPATH", path)

        async def body(path: str = path) -> None:
            async with processes(home) as p:
                choice = model(home, "a")
                who = await run_fake(p, choice, "who")
                assert who["cwd"] == str(home)
                assert str(here) not in who["path"] and "" not in who["path"]
                assert (str(other) in who["path"]) == (str(other) in path)
                found = await run_fake(p, choice, "imports", names=names)
                assert not any(str(origin).startswith(str(here)) for origin in found.values())

        run(body())
    assert not (tmp_path / "ran").exists()


# -- models side by side -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hangs", "refused", "crashes", "freezes", "asks", "waits"])
def test_a_load_holds_up_nobody_else_and_leaves_the_loaded_one_alone(kind: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path, Patience(load=2.0 if kind in ("hangs", "freezes") else 60.0)) as p:
            good, other = model(tmp_path, "good"), model(tmp_path, kind)
            p._patience, patience = Patience(), p._patience  # the good one takes as long as it takes
            pid = (await run_fake(p, good, "who"))["pid"]
            p._patience = patience
            loading = asyncio.create_task(run_fake(p, other, "echo", value=1))
            for number in range(20):
                assert await run_fake(p, good, "echo", value=number) == {"value": number}
                await asyncio.sleep(0.01)
            if kind == "waits":
                assert not loading.done()
                assert {"loading", "idle"} == {s.state for s in p.processes}
                (tmp_path / kind / "go").touch()
                assert await loading == {"value": 1}
                assert len(p.processes) == 2
            else:
                with pytest.raises(KvswapError) as failed:
                    await loading
                assert isinstance(failed.value, Incompatible if kind == "refused" else WorkerFailed)
                assert len(p.processes) == 1
            assert (await run_fake(p, good, "who"))["pid"] == pid

    run(body())


def test_who_waited_for_a_load_that_failed_does_not_try_again_each(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path, Patience(load=1.0)) as p:
            other = model(tmp_path, "hangs")
            jobs = [asyncio.create_task(run_fake(p, other, "echo")) for _ in range(5)]
            done = await asyncio.gather(*jobs, return_exceptions=True)
            assert all(isinstance(e, WorkerFailed) and "hangs" in e.message for e in done)
            assert p.starts == 1
            with pytest.raises(WorkerFailed):
                await run_fake(p, other, "echo")
            assert p.starts == 2

    run(body())


def test_at_most_so_many_processes_and_everybody_has_a_turn(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path, model_processes=2) as p:
            choices = [model(tmp_path, f"m{n}") for n in range(4)]
            most = 0

            async def ask(number: int) -> None:
                nonlocal most
                for _ in range(3):
                    assert await run_fake(p, choices[number], "echo", value=number) == {"value": number}
                    most = max(most, len(p.processes))

            await asyncio.gather(*(ask(n) for n in range(4)))
            assert most == 2

    run(body())


def test_where_memory_is_short_one_goes_before_the_other_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvswap.daemon.supervisor.available_bytes", lambda text: 1)

    async def body() -> None:
        async with processes(tmp_path) as p:
            a, b = model(tmp_path, "a"), model(tmp_path, "b")
            (tmp_path / "b" / "weights").write_bytes(b"x" * 100)
            heard = Heard()
            first = (await run_fake(p, a, "who"))["pid"]
            job = asyncio.create_task(run_fake(p, a, "until_cancelled", heard))
            await heard.first.wait()
            second = asyncio.create_task(run_fake(p, b, "who"))
            await asyncio.sleep(0.1)
            assert not second.done() and psutil.pid_exists(first)  # it waits for what runs
            job.cancel()
            await second
            assert not psutil.pid_exists(first) and len(p.processes) == 1

    run(body())


@pytest.mark.parametrize("phase", ["waits for a place", "waits for its turn", "loads"])
def test_cancelled_while_it_waits_it_leaves_no_trace(phase: str, tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path, model_processes=1) as p:
            a, heard = model(tmp_path, "a"), Heard()
            if phase == "loads":
                job = asyncio.create_task(run_fake(p, model(tmp_path, "waits"), "echo"))
                while not p.starts:
                    await asyncio.sleep(0.01)
            else:
                running = asyncio.create_task(run_fake(p, a, "until_cancelled", heard))
                await heard.first.wait()
                job = asyncio.create_task(
                    run_fake(p, a if phase == "waits for its turn" else model(tmp_path, "b"), "echo")
                )
                await asyncio.sleep(0.05)
            for _ in range(3):
                job.cancel()
                await asyncio.sleep(0)
            await asyncio.wait([job])
            assert job.cancelled()
            if phase != "loads":
                running.cancel()
                await asyncio.wait([running])
            assert await run_fake(p, a, "echo", value=3) == {"value": 3}
            assert len(p.processes) == 1 and not any(s.users for s in p._slots)

    run(body())


def test_the_end_of_the_node_ends_all_of_them_whatever_they_do(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path) as p:
            heard, jobs = Heard(), []
            jobs.append(asyncio.create_task(run_fake(p, model(tmp_path, "a"), "deaf", heard)))
            await heard.first.wait()
            jobs.append(asyncio.create_task(run_fake(p, model(tmp_path, "a"), "echo")))
            jobs.append(asyncio.create_task(run_fake(p, model(tmp_path, "hangs"), "echo")))
            jobs.append(asyncio.create_task(run_fake(p, model(tmp_path, "c"), "echo")))
            while p.starts < 2:
                await asyncio.sleep(0.01)
            await p.stop()
            done = await asyncio.gather(*jobs, return_exceptions=True)
            assert all(isinstance(e, WorkerFailed) for e in done), done
            assert psutil.Process(os.getpid()).children() == [] or p.processes == []
            with pytest.raises(WorkerFailed):
                await run_fake(p, model(tmp_path, "a"), "echo")

    run(body())


def test_idle_processes_end(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path, idle_unload_seconds=0.05) as p:
            await run_fake(p, model(tmp_path, "a"), "echo")
            keeping = asyncio.create_task(p.unload_when_idle())
            while p.processes:
                await asyncio.sleep(0.01)
            keeping.cancel()
            await asyncio.wait([keeping])
            assert p.model is None and p.pid is None

    run(body())


def test_one_that_was_killed_while_idle_is_replaced(tmp_path: Path) -> None:
    async def body() -> None:
        async with processes(tmp_path) as p:
            choice = model(tmp_path, "a")
            pid = (await run_fake(p, choice, "who"))["pid"]
            os.kill(pid, signal.SIGKILL)
            while p.pid is not None:
                await asyncio.sleep(0.01)
            assert (await run_fake(p, choice, "who"))["pid"] != pid

    run(body())


@pytest.mark.parametrize(("idle", "pause"), [(1e-6, 0.5), (0.0, 5.0), (2.0, 2.0), (900.0, 5.0)])
def test_however_soon_they_are_to_end_the_loop_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, idle: float, pause: float
) -> None:
    seen: list[float] = []

    async def once(name: str, step: Any, problems: Any, *, pause: float) -> None:
        seen.append(pause)

    async def body() -> None:
        monkeypatch.setattr("kvswap.daemon.supervisor.forever", once)
        async with processes(tmp_path, idle_unload_seconds=idle) as p:
            await p.unload_when_idle()

    run(body())
    assert seen == [pause]
