"""The walks of the use cases: `python -m tests.walks` traces them and writes them down.

They are kept in `docs/walks.json`, from which `docs/tools/walks.py` makes the picture and the text of
`docs/architecture.md`.  The walk inside vLLM is traced where vLLM is installed, by the same command in its environment;
elsewhere the one that is written down stays.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvswap.api import AskRequest, ProgressEvent
from kvswap.core.ids import document_digest
from kvswap.exchange.ask import answer
from kvswap.exchange.fetch import fetch
from kvswap.exchange.publish import publish
from kvswap.exchange.request import Terms
from tests.support import DOCUMENT, ROOT, run, tiny_model
from tests.walking import Walk, walking

TEXT = DOCUMENT.read_text()[:700]
REFERENCE = document_digest(TEXT.encode())


async def progress(event: ProgressEvent) -> None:
    """Stand for whoever shows progress."""


def exchange_walks(directory: Path, model: Path) -> dict[str, Walk]:
    """Trace `publish` on one node, `fetch` of that on another, and `ask` there of what it has by then."""
    from tests.exchange.modelled import publisher_and_reader

    async def body() -> dict[str, Walk]:
        async with publisher_and_reader(directory, model) as (_, publisher, reader):
            with walking("exchange", "publish") as published:
                await publish(publisher, TEXT.encode(), progress=progress)
            with walking("exchange", "fetch") as fetched:
                await fetch(reader, REFERENCE, Terms(force=True), progress)
            with walking("exchange", "ask") as asked:
                request = AskRequest(ref=REFERENCE, question="What?", max_tokens=4, text=TEXT)
                await answer(reader, request, progress)
            return {"publish": published, "fetch": fetched, "ask": asked}

    return run(body())


def vllm_walk(directory: Path) -> Any:
    """Trace a load in a real engine, all of whose parts are in one process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from tests.vllm.test_connector import Scene

    scene = Scene(directory, "llama")
    try:
        text = scene.text()
        scene.publish(text)
        scene.engine.ask([scene.ids(text) + scene.question()], walk=True)
        answered = scene.engine.answer_whole()
        assert answered["outputs"][0]["cached"] > 0, scene.engine.log[-3000:]
        return answered["walk"]
    finally:
        scene.stop()


def tool() -> Any:
    """The module `docs/tools/walks.py`."""
    spec = importlib.util.spec_from_file_location("walks_tool", ROOT / "docs" / "tools" / "walks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    walks = tool().load()
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        if find_spec("vllm") is not None:
            walk = vllm_walk(directory)
            walks["vllm"] = {"files": walk["files"], "again": walk["again"]}
        else:
            traced = exchange_walks(directory, tiny_model(directory / "model", "llama"))
            walks |= {name: {"files": walk.files, "again": walk.again} for name, walk in traced.items()}
            if "-v" in sys.argv:
                print("\n".join(f"{name}: {call}" for name, walk in traced.items() for call in walk.calls))
    tool().save(walks)
    subprocess.run([sys.executable, str(ROOT / "docs" / "tools" / "walks.py")], check=True)


if __name__ == "__main__":
    main()
