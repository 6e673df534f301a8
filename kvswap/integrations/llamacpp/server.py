"""A llama-server as kvswap uses it: asked over HTTP by who knows its address, or started here of what is installed.

Nothing of llama.cpp is imported into this process.  `started_server` runs xllamacpp's llama-server in a child, which
ends with this process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from kvswap.artifact.manifest import EngineProbe, ModelIdentity
from kvswap.core.errors import Incompatible, LocalFault, NotFound, TookTooLong, WorkerFailed
from kvswap.integrations.llamacpp.building import StateShape, shape_of
from kvswap.integrations.llamacpp.gguf import GgufFile
from kvswap.integrations.llamacpp.mapping import GgufLayout, layout_for
from kvswap.integrations.llamacpp.probe import probe_ids, probe_of
from kvswap.integrations.llamacpp.reading import parse_slot_file
from kvswap.integrations.llamacpp.state import SlotFile
from kvswap.integrations.llamacpp.writing import save_slot_file

START_SECONDS = 300.0
CALL_SECONDS = 60.0  # for what takes no computing
_MOST_ANSWER = 16 << 20
_LOG_SHOWN = 600

INSTALL = "pip install 'kvswap[llama]'"


class LlamaServer:
    """A running llama-server: its address, and the folder of its `--slot-save-path`, which is on this machine.

    Every call has a deadline in seconds.  Raises `NotFound` if nothing answers, `WorkerFailed` for an error of the
    server, `TookTooLong`.
    """

    def __init__(self, address: str, slots: Path) -> None:
        self.address, self.slots = address, slots
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 8080

    def call(self, path: str, body: dict[str, Any] | None = None, seconds: float = CALL_SECONDS) -> Any:
        """Send a request - POST with a body, else GET - and return the JSON of its answer."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        try:
            data = json.dumps(body).encode() if body is not None else None
            method = "POST" if data is not None else "GET"
            connection.request(method, path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read(_MOST_ANSWER + 1)
        except TimeoutError as error:
            raise TookTooLong(f"llama-server did not answer {path} within {seconds:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise NotFound(
                f"no llama-server answers at {self.address}: {type(error).__name__}",
                cause="it was not started, it ended, or it has another address",
                hint="llama-server --slot-save-path DIRECTORY -m MODEL.gguf",
            ) from error
        finally:
            connection.close()
        try:
            value = json.loads(content) if len(content) <= _MOST_ANSWER else None
        except ValueError:
            value = None
        if answer.status != 200 or value is None:
            shown = content[:200].decode("utf-8", "replace")
            raise WorkerFailed(f"llama-server refused {path} with {answer.status}: {shown}", cause="its log says more")
        return value

    def tokens(self, text: str, *, first: bool = True) -> list[int]:
        """Return the token ids of a text, with what begins a document if it comes `first`.

        Raises `Incompatible` for an answer that is none.
        """
        body = {"content": text, "add_special": first, "parse_special": not first}
        ids = self.call("/tokenize", body)
        found = ids.get("tokens") if isinstance(ids, dict) else None
        if not isinstance(found, list) or not all(type(value) is int and value >= 0 for value in found):
            raise Incompatible("llama-server's /tokenize gave no token ids", cause="it is of another release")
        return found

    def compute(self, ids: Sequence[int], seconds: float, *, slot: int = 0) -> None:
        """Prefill these tokens in a slot, going on from what it holds of them."""
        self.complete(ids, 0, seconds, slot=slot)

    def complete(
        self, ids: Sequence[int], max_tokens: int, seconds: float, *, slot: int = 0, ignore_eos: bool = False
    ) -> dict[str, Any]:
        """Continue these tokens greedily, and return the server's answer."""
        body = {"prompt": list(ids), "n_predict": max_tokens, "temperature": 0, "id_slot": slot, "cache_prompt": True}
        answer = self.call("/completion", body | {"return_tokens": True, "ignore_eos": ignore_eos}, seconds)
        if not isinstance(answer, dict) or not isinstance(answer.get("content"), str):
            raise Incompatible("llama-server's /completion gave no answer", cause="it is of another release")
        return answer

    def save(self, slot: int = 0) -> SlotFile:
        """Save a slot, and return what it holds; the file is removed.

        Raises `Incompatible` and `MalformedState` for a state that is not understood.
        """
        name = f"kvswap-{secrets.token_hex(8)}"
        path = self.slots / name
        try:
            self.call(f"/slots/{slot}?action=save", {"filename": name})
            try:
                data = path.read_bytes()
            except OSError as error:
                raise LocalFault(
                    f"the slot that llama-server saved is not at {path}",
                    cause="its --slot-save-path is another directory, or on another machine",
                ) from error
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
        return parse_slot_file(data)

    def restore(self, file: SlotFile, slot: int = 0) -> None:
        """Put a sequence into a slot in place of what it holds.  The server sees a file that is whole, or none."""
        name = f"kvswap-{secrets.token_hex(8)}"
        path = self.slots / name
        try:
            save_slot_file(path, file)
            self.call(f"/slots/{slot}?action=restore", {"filename": name})
        finally:
            with contextlib.suppress(OSError):
                path.unlink()

    def erase(self, slot: int = 0) -> None:
        """Empty a slot."""
        self.call(f"/slots/{slot}?action=erase", {})


@dataclass(frozen=True, slots=True)
class Described:
    """A server and its model as far as known: how states look and are laid out, how it computes, and how fast."""

    identity: ModelIdentity
    shape: StateShape
    layout: GgufLayout
    probe: EngineProbe
    token_seconds: float
    """The seconds of prefilling a token, as they were with the probe."""


def describe(server: LlamaServer, model: GgufFile, identity: ModelIdentity, slot: int = 0) -> Described:
    """Learn from a server what its states look like and how it computes, by the tokens of the probe in a slot.

    The slot is empty afterwards.  Raises `Incompatible` naming what is not supported.
    """
    vocabulary = next((tensor.shape[-1] for tensor in model.tensors if tensor.name == "token_embd.weight"), 0)
    if not vocabulary:
        raise Incompatible(f"{model.path.name} has no token embedding", field="model")
    ids = probe_ids(vocabulary)
    server.erase(slot)
    answer = server.complete(ids, 0, START_SECONDS, slot=slot)
    file = server.save(slot)
    server.erase(slot)
    if list(file.ids) != ids:
        raise Incompatible("llama-server computed other tokens than it was given", cause="something stands before it")
    shape = shape_of(file)
    layout = layout_for(model, shape)
    props = server.call("/props")
    version = str(props.get("build_info", "")) if isinstance(props, dict) else ""
    timings = answer.get("timings")
    taken = timings.get("prompt_ms") if isinstance(timings, dict) else None
    seconds = max(0.0, float(taken)) / 1e3 if isinstance(taken, int | float) else 0.0
    return Described(identity, shape, layout, probe_of(layout, file, version), seconds / len(ids))


_CHILD = """
import json, sys
import xllamacpp
given = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = given.pop("model")
threads = given.pop("threads")
if threads:
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
for name in ("cache_type_k", "cache_type_v"):
    setattr(params, name, getattr(xllamacpp.ggml_type, "GGML_TYPE_" + given.pop(name).upper()))
for name, value in given.items():
    setattr(params, name, value)
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def started_server(
    model: Path, context: int, *, cache_type: str = "f16", threads: int = 0, python: str = sys.executable
) -> Iterator[LlamaServer]:
    """Start xllamacpp's llama-server with one slot of `context` tokens; it ends with the block, or with this process.

    `threads`: 0 is its own choice.  Raises `NotFound` with the command that installs it, `WorkerFailed` with the end of
    its log, `TookTooLong`.
    """
    if python == sys.executable and find_spec("xllamacpp") is None:
        raise NotFound(
            "a GGUF model needs xllamacpp, which this installation does not have",
            cause="kvswap was installed without its extra `llama`",
            hint=INSTALL,
        )
    with tempfile.TemporaryDirectory(prefix="kvswap-llama-") as slots, tempfile.TemporaryFile() as log:
        given = {
            "model": str(model.resolve()),
            "slot_save_path": f"{slots}/",
            "n_ctx": context,
            "n_parallel": 1,
            "cache_type_k": cache_type,
            "cache_type_v": cache_type,
            "cache_ram_mib": 0,
            "warmup": False,
            "fit_params": False,
            "threads": threads,
        }
        # Its threads otherwise wait in busy loops, which makes everything ten times slower beside other work.
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ
        process = subprocess.Popen(
            [python, "-c", _CHILD, json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
        try:
            yield LlamaServer(_address(process, log, model), Path(slots))
        finally:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[bytes], log: IO[bytes], model: Path) -> str:
    """Return the address that a starting server prints."""
    assert process.stdout is not None  # noqa: S101 - it is a pipe
    until, line = time.monotonic() + START_SECONDS, b""
    while not line.endswith(b"\n"):
        left = until - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise TookTooLong(f"llama-server did not load {model.name} within {START_SECONDS:g} s")
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            log.seek(0)
            end = log.read().decode("utf-8", "replace")[-_LOG_SHOWN:].strip()
            raise WorkerFailed(
                f"llama-server did not load {model.name}: {end}",
                cause="a model of a newer kind than the installed llama.cpp, or not enough memory",
            )
        line += piece
    return line.decode("ascii", "replace").strip()
