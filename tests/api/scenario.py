"""A walk through all verbs, on two nodes and a host; what each answers, as JSON.

`python -m tests.api.scenario FILE` adds the shapes of one run to those in FILE.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kvswap.core.ids import document_digest
from kvswap.host.usage_log import UsageLog
from kvswap.net.host_connection import Invitation
from kvswap.trust.hosting import sign_offer
from tests.api.shapes import Shape, either, shape_of
from tests.exchange.test_hosts import DOCUMENT as HOSTED
from tests.exchange.test_hosts import PEER, Liar, serving
from tests.support import DOCUMENT, Daemon, kvswap, tiny_model, until
from tests.trust.test_hosting import HOST as HOST_KEY
from tests.trust.test_hosting import offer, read

TEXT = DOCUMENT.read_text()


class Recorder:
    """What verbs printed with `--json`, by verb: lines with an event, and the last one."""

    def __init__(self) -> None:
        self.answers: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def __call__(self, node: Daemon, name: str, *arguments: str, **how: Any) -> dict[str, Any]:
        """Run a verb; its lines are kept under `name`.  `how`: the keywords of `tests.support.kvswap`."""
        done = kvswap(node.home, *arguments, "--json", **how)
        assert done.returncode == 0, (arguments, done.stderr)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.answers[name] += lines
        return dict(lines[-1])

    def http(self, node: Daemon, name: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask the API itself."""
        info = json.loads((node.home / "daemon.json").read_text())
        request = urllib.request.Request(
            info["url"] + path,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Authorization": f"Bearer {info['token']}"},
        )
        with urllib.request.urlopen(request, timeout=600) as response:
            lines = [json.loads(line) for line in response.read().splitlines()]
        lines = [line for line in lines if line.get("event") != "heartbeat"]
        self.answers[name] += lines
        return dict(lines[-1])


def shapes(answers: dict[str, list[dict[str, Any]]]) -> dict[str, Shape]:
    """Describe what was answered: of each verb the result, and each kind of event by itself."""
    found: dict[str, Shape] = {}
    for name, lines in answers.items():
        for line in lines:
            what = f"{name}: {line['event']}" if "event" in line else name
            found[what] = either(found.get(what), shape_of(line))
    return found


def walk(root: Path, ada: Daemon, bob: Daemon, host: Liar) -> dict[str, list[dict[str, Any]]]:
    """Run every verb."""
    do = Recorder()
    document, longer, other = root / "document.txt", root / "longer.txt", root / "other.txt"
    document.write_text(TEXT[:1200])
    longer.write_text(TEXT[:1200] + "and more " * 40)
    other.write_text(TEXT[1200:1900])
    reference = document_digest(document.read_bytes())
    short = ("--max-tokens", "2", "--ignore-eos")

    do(ada, "ask", "ask", str(document), "What?", *short)
    artifact = do(ada, "publish", "publish", str(document))["artifact"]
    do(ada, "publish", "publish", str(document))
    do(ada, "publish", "publish", str(other), "--codec", "int8", "--checkpoints", "20")
    do(ada, "group new", "group", "new", "team")
    do(ada, "group ls", "group", "ls")
    key = do(ada, "group export", "group", "export", "team")["key"]
    do(bob, "group import", "group", "import", typed=key)
    do(ada, "publish", "publish", str(other), "--group", "team")

    until(lambda: bob.client.status()["peers"], what="a connection")
    do(bob, "find", "find", str(document))
    do(bob, "trust add", "trust", "add", ada.publisher, "--label", "ada")
    do(bob, "find", "find", "--text", str(longer))
    do(bob, "trust ls", "trust", "ls")
    do(bob, "plan", "plan", str(document))
    do(bob, "plan", "plan", str(longer))
    do(bob, "ask", "ask", str(longer), "What?", *short, "--force")
    do(bob, "fetch", "fetch", reference, "--force")
    do(bob, "fetch", "fetch", artifact)
    do(ada, "fetch", "fetch", artifact)
    do(bob, "fetch", "fetch", str(other), "--force", "--group", "team")
    do(bob, "ask", "ask", str(document), "What?", *short)
    do(bob, "verify", "verify", str(document), "--level", "7")
    do(bob, "verify", "verify", artifact)
    do(ada, "verify", "verify", artifact)
    do(bob, "verify --store", "verify", "--store")
    do(bob, "trust audits", "trust", "audits")
    do(bob, "plan", "plan", str(document))

    for node in (ada, bob):
        do(node, "status", "status")
        do(node, "id", "id")
        do(node, "peers", "peers")
        do(node, "ls", "ls")
        do(node, "config", "config")
    do(bob, "show", "show", artifact)
    do(bob, "model ls", "model", "ls")
    do(bob, "pin", "pin", artifact)
    do(bob, "pin", "unpin", artifact)
    do(bob, "export", "export", artifact, str(root / "archive.tar"))
    do(bob, "rm --dry-run", "rm", artifact, "--dry-run")
    do(bob, "rm", "rm", "-y", artifact)
    do(bob, "import", "import", str(root / "archive.tar"))
    do(bob, "gc", "gc", "--to", "1")

    for path in ("/healthz", "/readyz", "/v1/models", "/v1/groups", "/v1/beginnings", "/v1/audits"):
        do.http(bob, f"GET {path}", path)
    do.http(ada, "GET /v1/artifacts/{ref}", f"/v1/artifacts/{artifact}?key=1")
    shown = do.answers["GET /v1/artifacts/{ref}"][-1]
    prefix = shown["manifest"]["prefix"]
    asked = {"chain": prefix["chain"], "dtype": "float32", "block_tokens": prefix["block_tokens"], "force": True}
    do.http(bob, "beginning", "/v1/beginning", asked | {"model": shown["model"]})

    hosting(do, ada, document)
    local(do, ada, root, artifact)

    do(bob, "host join", "host", "join", "--plain", typed=Invitation(host.url, PEER, "token").to_text())
    do(bob, "host known", "host", "known")
    do(bob, "plan", "plan", HOSTED, "--host", PEER)
    do(bob, "ask", "ask", HOSTED, "What?", "--host", PEER, *short)
    do(bob, "host leave", "host", "leave", PEER)

    corpus = root / "corpus"
    corpus.mkdir()
    (corpus / "text.txt").write_text(TEXT)
    do(ada, "codec train", "codec", "train", "--corpus", str(corpus), "--tokens", "1000")
    do(ada, "withdraw", "withdraw", artifact)
    do(bob, "trust rm", "trust", "rm", ada.publisher)
    do(bob, "trust rotate", "trust", "rotate")
    do(bob, "block", "block", str(ada.ready["peer"]))
    do(bob, "unblock", "unblock", str(ada.ready["peer"]))
    do(bob, "group rm", "group", "rm", "team")
    for node in (ada, bob):
        do(node, "events", "events")
    do(bob, "stop", "stop")
    return do.answers


def hosting(do: Recorder, node: Daemon, document: Path) -> None:
    """Run the verbs of a node's own host; it is enough that one was started once."""
    (node.home / "host.json").write_text(json.dumps({"url": "http://127.0.0.1:8100"}))
    do(node, "host add", "host", "add", str(document))
    do(node, "host ls", "host", "ls")
    do(node, "host invite", "host", "invite", "visitor")
    do(node, "host clients", "host", "clients")
    signed = sign_offer(offer(), HOST_KEY)
    usage_log = UsageLog(node.home / "host.sqlite3")
    usage_log.add_offer(signed)
    usage_log.add_receipt(read(signed), HOST_KEY)
    do(node, "host log", "host", "log")
    do(node, "host revoke", "host", "revoke", "visitor")
    do(node, "host rm", "host", "rm", str(document))


def local(do: Recorder, node: Daemon, root: Path, artifact: str) -> None:
    """Run the verbs that need no daemon."""
    do.answers["daemon"].append(node.ready)
    model = str(node.client.status().model.default)
    models = root / "models"
    shutil.copytree(model, models / "org--tiny")
    env = {"KVSWAP_MODELS": str(models)}
    do(node, "model pull", "model", "pull", "org/tiny", env=env)
    do(node, "model check", "model", "check", model)
    do(node, "model check", "model", "check", str(_with_states(root / "states")))
    do(node, "model rm", "model", "rm", "-y", "org/tiny", env=env)
    do(node, "doctor", "doctor")
    do(node, "completion", "completion", "bash")
    do(node, "logs", "logs", "-n", "5")
    do(node, "config", "config", "model")
    do(node, "config", "config", env={"KVSWAP_THREADS": "3"})
    do(node, "manifest check", "manifest", "check", str(node.home / "store" / "artifacts" / f"{artifact}.kvm"))
    signed = root / "offer"
    signed.write_bytes(sign_offer(offer(), HOST_KEY).envelope)
    do(node, "manifest check", "manifest", "check", str(signed), "--at", str(offer().issued))


def _with_states(directory: Path) -> Path:
    """Write the configuration of a model that is refused."""
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    return directory


@contextmanager
def nodes(root: Path, model: Path) -> Iterator[tuple[Daemon, Daemon, Liar]]:
    """Run a publisher, a reader that is connected to it, and a host."""
    usual = ["--model", str(model), "--dtype", "float32"]
    env = {"KVSWAP_BLOCK_TOKENS": "64"}
    ada = Daemon(root / "ada", usual, env).start()
    bob = Daemon(root / "bob", [*usual, "--bootstrap", ada.address], env).start()
    try:
        with serving() as host:
            yield ada, bob, host
    finally:
        for node in (bob, ada):
            node.stop()


def main(file: Path) -> None:
    """Add one run to what is recorded."""
    known = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        with nodes(root, tiny_model(root / "model", "llama")) as given:
            found = shapes(walk(root, *given))
    every = {name: either(known.get(name), found.get(name)) for name in sorted({*known, *found})}
    file.write_text(json.dumps(every, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
