"""A real llama-server for tests: xllamacpp's, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

_RUN = """
import json, sys
import xllamacpp as x
given = json.loads(sys.argv[1])
params = x.CommonParams()
params.model.path = given.pop("model")
params.warmup = False
params.fit_params = False
params.verbosity = 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
for name, value in given.items():
    if name.startswith("cache_type"):
        value = getattr(x.ggml_type, "GGML_TYPE_" + value.upper())
    if name == "lora":
        adapter = x.CommonAdapterLoraInfo()
        adapter.path, adapter.scale = value, 1.0
        params.lora_adapters = [adapter]
        continue
    if name == "flash_attn_type":
        value = x.llama_flash_attn_type(value)
    setattr(params, name, value)
server = x.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class Server:
    """A server for one model; `settings` are attributes of xllamacpp's `CommonParams`."""

    def __init__(self, model: Path, slots: Path, *, python: str = sys.executable, **settings: Any) -> None:
        given = {"model": str(model), "slot_save_path": f"{slots}/", "n_ctx": 1024, "cache_ram_mib": 0} | settings
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        self.slots = slots
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - not a pipe: nobody reads it meanwhile
        self.process = subprocess.Popen(
            [python, "-c", _RUN, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            self._log.seek(0)
            raise AssertionError(self._log.read()[-2000:])

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request and return the JSON of its answer."""
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.address + path, data, headers), timeout=300) as answer:
            return json.load(answer)

    def complete(self, ids: list[int], n_predict: int = 0, slot: int = 0, **more: Any) -> Any:
        """Complete token ids greedily."""
        body = {"prompt": ids, "n_predict": n_predict, "temperature": 0, "id_slot": slot, "cache_prompt": True}
        return self.call("/completion", body | {"return_tokens": True} | more)

    def save(self, name: str, slot: int = 0) -> bytes:
        """Save a slot and return its file."""
        self.call(f"/slots/{slot}?action=save", {"filename": name})
        return (self.slots / name).read_bytes()

    def restore(self, name: str, data: bytes | None = None, slot: int = 0) -> Any:
        """Restore a slot, of these bytes or of a file that is there."""
        if data is not None:
            (self.slots / name).write_bytes(data)
        return self.call(f"/slots/{slot}?action=restore", {"filename": name})
