"""The base package, without its extra `torch`: a node and its command line where neither torch nor transformers is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT, Daemon, key, kvswap, make_artifact, stock, until

HIDES = '''"""Hides what computes from every interpreter that is started with this directory in PYTHONPATH."""
import sys

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "safetensors", "huggingface_hub", "gguf", "accelerate",
                                      "tokenizers"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hider())
'''


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of an installation without the extra."""
    place = tmp_path / "hides"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HIDES)
    env = {"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "KVSWAP_MODELS": str(tmp_path / "models")}
    for name in ("torch", "transformers"):
        tried = subprocess.run([sys.executable, "-c", f"import {name}"], env=os.environ | env, capture_output=True)
        assert tried.returncode, name
    return env


def test_a_node_without_torch_fetches_serves_and_says_what_is_missing(
    daemon: Callable[..., Daemon], tmp_path: Path, bare: dict[str, str]
) -> None:
    made = make_artifact(key())
    stock(tmp_path / "a", made)
    a = daemon("a", **bare)
    a.client.trust_add(str(key().peer_id))
    b = daemon("b", "--bootstrap", a.address, **bare)
    b.client.trust_add(str(key().peer_id))
    until(lambda: b.client.status()["peers"], what="a connection")

    done = kvswap(b.home, "fetch", made.id, env=bare)
    assert done.returncode == 0, done.stderr
    done = kvswap(b.home, "ls", env=bare)
    assert done.returncode == 0 and made.id in done.stdout
    assert a.client.status()["bytes_out"] > 0
    done = kvswap(b.home, "doctor", env=bare)
    assert "computes nothing" in done.stdout, done.stdout

    (tmp_path / "text.txt").write_text("a text")
    for arguments in (["publish", str(tmp_path / "text.txt")], ["model", "pull", "smollm2-135m"]):
        done = kvswap(b.home, *arguments, env=bare)
        assert done.returncode == 5, done.stderr
        assert 'pip install "kvswap[torch]"' in done.stderr


def test_the_client_imports_without_torch(bare: dict[str, str]) -> None:
    script = (
        "import kvswap; kvswap.Client; kvswap.AsyncClient; import kvswap.daemon.run, kvswap.host.app; print('here')"
    )
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | bare, capture_output=True, text=True)
    assert done.stdout.strip() == "here", done.stderr
