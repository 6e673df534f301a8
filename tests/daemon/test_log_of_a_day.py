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
from kvswap.net.host_connection import Invitation
from tests.support import DOCUMENT, Daemon, key, kvswap, until

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
    secret_file = tmp_path / "secret.txt"
    secret_file.write_text(QUESTION)
    invitation = every_other_verb(a, b, published["artifact"], open_text, secret_file)
    with contextlib.suppress(KvswapError):
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
    job = next(line for line in lines[1] if line["message"].startswith("job answer: done"))
    assert (job["request"], job["logger"]) == (asked["request"], "kvswap.worker")
    assert job["process"] != asked["process"], "the model process's own"

    secrets = {
        "the invitation": invitation,
        "the invitation's token": "sesame-of-the-keepers",
        "a name within the group": "keepers-of-old",
        "the question": QUESTION,
        "the group": GROUP,
        "the group's key": exported["key"],
        "an open document": document_digest(open_text.encode()).removeprefix("sha256:"),
        "a sealed document": document_digest(sealed_text.encode()).removeprefix("sha256:"),
        **{f"the access token {n}": run.token for n, run in enumerate(runs)},
    }
    for text in (open_text, sealed_text):
        secrets |= {f"words {line!r}": line.strip() for line in text.splitlines() if len(line.strip()) > 25}
    for file in [path for node in (a, b) for path in (node.home / "keys").rglob("*") if path.is_file()]:
        data = file.read_bytes()
        secrets |= {f"{file.name} in {form}": text for form, text in forms(data)}
    for log in logs:
        assert sealed["artifact"] in logs[0]
        found = [what for what, secret in secrets.items() if secret in log]
        assert not found


def every_other_verb(a: Daemon, b: Daemon, artifact: str, text: str, secret_file: Path) -> str:
    """Use every other verb, most of them in a way that fails too; returns an invitation, which is a secret."""
    document, me = document_digest(text.encode()), a.client
    invitation = Invitation("http://127.0.0.1:9", str(key(5).peer_id), "sesame-of-the-keepers").to_text()
    wrong: list[Callable[[], object]] = [
        lambda: b.client.fetch(document_digest(b"nobody has it")),
        lambda: me.publish("\x00" + QUESTION),
        lambda: me.publish(QUESTION, group="keepers-of-old"),
        lambda: me.publish(QUESTION, model="no-such-model"),
        lambda: me.group_import("kvswap-group:" + QUESTION),
        lambda: me.group_import(QUESTION, "keepers-of-old"),
        lambda: me.group_export("keepers-of-old"),
        lambda: me.group_remove("keepers-of-old"),
        lambda: me.host_join(invitation, plain=True),
        lambda: me.host_join(QUESTION),
        lambda: me.host_leave(b.ready["peer"]),
        lambda: me.ask(document, QUESTION, host=b.ready["peer"], text=text),
        lambda: me.plan(document, text=text, host="auto"),
        lambda: me.codec_train(str(secret_file.parent), tokens=1_000),
        lambda: me.publish_computed([QUESTION.encode()]),
        lambda: me.cached_prefix(b"\x01\x00\x00\x00" * 64, bytes(32), "float32", block_tokens=16),
        lambda: me.prefix_index(),
        lambda: me.show(document),
        lambda: me.rm(document_digest(QUESTION.encode())),
        lambda: me.verify(artifact, text=QUESTION),
        lambda: me.verify(store=True),
        lambda: me.trust_add(b.publisher, "keepers-of-old"),
        lambda: me.trust_rm(b.publisher),
        lambda: me.trust_ls(),
        lambda: me.groups(),
        lambda: me.hosts(),
        lambda: me.audits(),
        lambda: me.peers(),
        lambda: list(me.events()),
        lambda: me.gc(10**12),
        lambda: me.ls(),
        lambda: b.client.rm(artifact),
    ]
    failed = 0
    for use in wrong:
        try:
            use()
        except KvswapError:
            failed += 1
    assert failed >= 10, "most of these are mistakes"
    for arguments in (
        ["host", "invite", "visitor"],
        ["host", "add", str(secret_file)],
        ["host", "ls"],
        ["host", "rm", str(secret_file)],
        ["host", "clients"],
        ["host", "log"],
        ["host", "revoke", "visitor"],
        ["host", "--engine", "http://127.0.0.1:9", "--listen", "127.0.0.1:0"],
        ["publish", str(secret_file), "--group", "keepers-of-old"],
        ["ask", str(secret_file), QUESTION, "--host", "auto"],
        ["group", "import", str(secret_file)],
        ["manifest", "check", str(secret_file)],
        ["bench", "paper", "--text", str(secret_file), "--quick", "--steps", "0"],
        ["doctor"],
    ):
        kvswap(a.home, *arguments, timeout=120)
    return invitation


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
