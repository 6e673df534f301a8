"""A vLLM engine as a process of its own, as tests and benchmarks use it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.vllm.engine import ENVIRONMENT


@dataclass(frozen=True)
class Output:
    """Of one prompt: ids and their log probabilities, tokens that were not computed, seconds to the first one."""

    ids: list[int]
    scores: list[float]
    cached: int
    first: float


class Engine:
    """`python -m tests.vllm.engine`; ends with `stop`."""

    def __init__(self, log: Path, wrapper: Sequence[str] = (), **config: Any) -> None:
        """`config` as `tests.vllm.engine` takes it; `wrapper`: a command that runs it."""
        self._log = log
        self._process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "tests.vllm.engine", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=ROOT,
        )
        if not self._answer().get("ready"):
            raise AssertionError("the engine is not ready")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the engine ended:\n{self.log[-3000:]}")
        return dict(json.loads(line))

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def loads(self) -> int:
        """How many prefixes were loaded so far."""
        return self.log.count("kvswap: loaded")

    def ask(self, prompts: Sequence[Sequence[int]], tokens: int = 8, **more: Any) -> None:
        """Without waiting for the answer."""
        assert self._process.stdin is not None
        request = {"prompts": [list(ids) for ids in prompts], "max_tokens": tokens, **more}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    @property
    def answered(self) -> bool:
        """True if there is an answer to take.  Of one `ask` at a time."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def answer_whole(self) -> dict[str, Any]:
        """Of the oldest `ask`, all that `tests.vllm.engine` says."""
        return self._answer()

    def answer(self) -> tuple[list[Output], float]:
        """Of the oldest `ask`: outputs, and seconds in all."""
        answer = self._answer()
        return [Output(**output) for output in answer["outputs"]], float(answer["seconds"])

    def run(self, *prompts: Sequence[int], tokens: int = 8, **more: Any) -> list[Output]:
        self.ask(prompts, tokens, **more)
        return self.answer()[0]

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(600)


class Host:
    """`kvswap host` for a node's home, with a vLLM of its own; `wrapper`: a command that runs it."""

    def __init__(self, home: Path, *flags: str, wrapper: Sequence[str] = (), **env: str) -> None:
        self.home, self._wrapper = home, wrapper
        self._log = home / "host.log"
        self._process = subprocess.Popen(
            [*wrapper, *self._command(), *flags],
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | env,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        self.info = json.loads(line or "{}")
        assert self.info.get("ready"), self._log.read_text()[-4000:]

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "kvswap", "--json", "--home", str(self.home), "host"]

    def run(self, *arguments: str) -> dict[str, Any]:
        """A command on the host's machine."""
        command = [*self._wrapper, *self._command(), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(600) == 0, self._log.read_text()[-4000:]
