"""What the log of two nodes that did everything holds, and what it never does."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from kvswap.core.errors import KvswapError
from kvswap.core.ids import document_digest
from kvswap.core.runfile import RunFile
from tests.support import DOCUMENT, Daemon, until

QUESTION = "Which quokka guards the lighthouse?"
GROUP = "lighthouse-keepers"
FLAGS = ("--dtype", "float32", "--log-level", "debug", "--log-format", "json")


def test_the_log_tells_what_was_done_and_no_secret(
    daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    model = str(tiny_models["llama"])
    a = daemon("a", "--model", model, *FLAGS, KVSWAP_ALSO_CODEC="")
    b = daemon("b", "--model", model, "--bootstrap", a.address, *FLAGS)
    open_text, sealed_text = DOCUMENT.read_text()[:1500], DOCUMENT.read_text()[2000:3500]
    until(lambda: b.client.status()["peers"], what="a connection")
    b.client.trust_add(a.publisher)
    a.client.group_new(GROUP)
    exported = a.client.group_export(GROUP)
    b.client.group_import(exported["key"])
    published = a.client.publish(open_text)
    sealed = a.client.publish(sealed_text, group=GROUP)
    b.client.fetch(published["artifact"], force=True)
    b.client.fetch(document_digest(sealed_text.encode()), force=True, group=GROUP)
    b.client.ask(document_digest(open_text.encode()), QUESTION, text=open_text, max_tokens=4)
    b.client.verify(published["artifact"], text=open_text)
    b.client.pin(published["artifact"])
    b.client.find(document_digest(sealed_text.encode()), group=GROUP)
    b.client.find(document_digest(open_text.encode()), text=open_text)
    for name in (published["artifact"], sealed["artifact"]):
        a.client.export(name, tmp_path / "archive.tar")
        b.client.import_(tmp_path / "archive.tar")
    b.client.config()
    b.client.block(a.ready["peer"])
    b.client.block(a.ready["peer"], False)
    for wrong in (
        lambda: b.client.fetch(document_digest(b"nobody has it")),
        lambda: a.client.publish("\x00" + QUESTION),
    ):
        with contextlib.suppress(KvswapError):
            wrong()
    a.client.withdraw(published["artifact"], "a test")
    runs = [RunFile.read(a.home), RunFile.read(b.home)]
    assert request_of(runs[0], "POST", "/v1/gc", {"Kvswap-Request": "chosen-by-me"}) == "chosen-by-me"
    assert len(request_of(runs[0], "POST", "/v1/gc", {"Kvswap-Request": "not one\t!"})) == 8
    a.stop()
    b.stop()

    logs = [(node.home / "kvswap.log").read_text() for node in (a, b)]
    lines = [[json.loads(line) for line in log.splitlines()] for log in logs]
    told = [{line["event"]["event"] for line in of if "event" in line} for of in lines]
    assert {"published", "withdrawn", "exported"} <= told[0] and {
        "fetched",
        "imported",
        "blocked",
        "unblocked",
        "connected",
    } <= told[1]
    assert {"kvswap.exchange.publishing.ingest", "kvswap.daemon.tracing", "kvswap.daemon.supervisor"} <= {
        line["logger"] for line in lines[0]
    }
    (asked,) = [line for line in lines[1] if line["message"].startswith("POST /v1/ask")]
    assert " 200, " in asked["message"] and asked["request"]
    fetched = next(line for line in lines[1] if line.get("event", {}).get("event") == "fetched")
    assert fetched["request"], "an event belongs to the request that it happened in"
    assert any(line.get("request") == "chosen-by-me" for line in lines[0])

    secrets = {
        "the question": QUESTION,
        "the group": GROUP,
        "the group's key": exported["key"],
        "an open document": document_digest(open_text.encode()).removeprefix("sha256:"),
        "a sealed document": document_digest(sealed_text.encode()).removeprefix("sha256:"),
        **{f"the access token {n}": run.token for n, run in enumerate(runs)},
    }
    for text in (open_text, sealed_text):
        secrets |= {f"words {line!r}": line.strip() for line in text.splitlines() if len(line.strip()) > 25}
    for key in [path for node in (a, b) for path in (node.home / "keys").rglob("*") if path.is_file()]:
        data = key.read_bytes()
        secrets |= {f"{key.name} in {form}": text for form, text in forms(data)}
    for log in logs:
        assert sealed["artifact"] in logs[0]
        found = [what for what, secret in secrets.items() if secret in log]
        assert not found


def forms(data: bytes) -> list[tuple[str, str]]:
    """A key's bytes as a log might show them; of a file of text, its longest words."""
    made = [("hex", data.hex()), ("base64", base64.b64encode(data).decode().rstrip("="))]
    with contextlib.suppress(UnicodeDecodeError):
        made += [("text", word) for word in data.decode().split() if len(word) > 20]
    return made


def request_of(run: RunFile, method: str, path: str, headers: dict[str, str]) -> str:
    """The id that an answer gives for its request."""
    url = urlsplit(run.url)
    connection = http.client.HTTPConnection(str(url.hostname), url.port, timeout=600)
    try:
        connection.request(method, path, b"{}", {"Authorization": f"Bearer {run.token}", **headers})
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        return str(response.headers["Kvswap-Request"])
    finally:
        connection.close()
