"""A model from the hub is that of one commit, all its files, and says which."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import UsageError
from kvswap.model import catalogue
from tests.support import ROOT

FIRST, SECOND = "a" * 40, "b" * 40


class Hub:
    """A hub on loopback with one repository, whose `main` moves on when its first file has been fetched."""

    def __init__(self) -> None:
        self.main = FIRST
        self.asked: list[str] = []
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
                    listed = [{"rfilename": name} for name in ("config.json", "model.safetensors")]
                    self._send(json.dumps({"id": "org/name", "sha": commit, "siblings": listed}).encode(), commit)
                else:
                    revision = parts[3]
                    commit = hub.main if revision == "main" else revision
                    if self.command == "GET":
                        hub.main = SECOND
                    self._send(f'{{"commit": "{commit}"}}'.encode(), commit)

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


@pytest.mark.faults
@pytest.mark.parametrize("revision", ["", SECOND])
def test_all_files_are_of_one_commit(hub: Hub, tmp_path: Path, revision: str) -> None:
    name = f"org/name@{revision}" if revision else "org/name"
    code = "import sys; from pathlib import Path; from kvswap.model.pull import pull; print(pull(sys.argv[1], Path(sys.argv[2])))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(tmp_path / "models")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + str(hub.asked)
    directory = Path(done.stdout.strip().splitlines()[-1])
    wanted = revision or FIRST
    for file in ("config.json", "model.safetensors"):
        assert json.loads((directory / file).read_text()) == {"commit": wanted}
    assert json.loads((directory / "pulled.json").read_text()) == {"repository": "org/name", "commit": wanted}
    assert catalogue.resolve(name, tmp_path / "models") == directory
    assert name in catalogue.pulled(tmp_path / "models")


@pytest.mark.parametrize("name", ["org/name@", "org/name@a/b", "org/name@..", "org/name@a b", "org@name"])
def test_what_is_no_revision_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        catalogue.local_directory(name, tmp_path)
