"""The model process of a real daemon: nothing of the current directory, frozen or killed in the middle of work."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kvswap.core.errors import KvswapError, WorkerFailed
from tests.support import DOCUMENT, ROOT, Daemon, until

pytestmark = pytest.mark.faults

NAMES = ["queue", "json", "torch", "random", "numpy", "safetensors", "transformers", "struct", "sitecustomize"]


def test_what_lies_about_is_not_run_and_a_frozen_process_is_replaced(
    daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in NAMES:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__ + ' ')\nprint('noise')")
    node = daemon(
        "a",
        "--model",
        str(tiny_models["llama"]),
        "--dtype",
        "float32",
        program=("tests.daemon.impatient",),
        wrapper=("env", "-C", str(here)),
        PYTHONSAFEPATH="1",  # as the `kvswap` command has it: its directory, not the current one, is first
        PYTHONPATH=str(ROOT),
        SILENT_SECONDS="15",
        KVSWAP_ALSO_CODEC="",
    )
    text = DOCUMENT.read_text()[:3000]
    node.client.publish(text)
    assert not (tmp_path / "ran").exists()
    (model,) = node.client.status()["model"]["processes"]
    process = psutil.Process(model["pid"])
    assert process.cwd() == str(node.home) and model["state"] == "idle"

    # Stopped while it stands idle: the next request notices, and says so.
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(WorkerFailed) as failed:
        node.client.publish(text[:2000])
    assert "not been heard of" in failed.value.message and failed.value.cause and failed.value.exit_code == 1
    assert "not been heard of" in node.client.status()["degraded"]["model process"]
    assert not psutil.pid_exists(process.pid)
    node.client.publish(text[:2000])
    assert "model process" not in node.client.status()["degraded"]

    # Killed in the middle of a job.
    begun, errors = threading.Event(), []

    def publish() -> None:
        try:
            node.client.publish(DOCUMENT.read_text()[:4000], on_event=lambda event: begun.set())
        except KvswapError as error:
            errors.append(error)
        finally:
            begun.set()

    thread = threading.Thread(target=publish)
    thread.start()
    assert begun.wait(600)
    os.kill(node.client.status()["model"]["pid"], signal.SIGKILL)
    thread.join()
    assert not errors or (isinstance(errors[0], WorkerFailed) and errors[0].exit_code == 1)
    node.client.publish(text[:1000])
    until(lambda: node.client.status()["degraded"] == {}, what="nothing to be degraded")
