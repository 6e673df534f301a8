"""A real host: `kvswap host` starts vLLM, and clients ask it, with a node and as any OpenAI program would."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import NotFound, TokenRefused
from kvswap.core.ids import document_digest
from kvswap.cost import Objective
from kvswap.host.usage_log import UsageLog
from kvswap.trust.hosting import check_price, read_offer, read_receipt
from tests.support import DOCUMENT, Daemon, tiny_model, until
from tests.vllm.running import Host

BLOCK, PAGE = 64, 32
PRICES = {"read": 0.03, "prefill": 0.3, "make": 0.6}
TEXT = DOCUMENT.read_text()[:2400]
REFERENCE = document_digest(TEXT.encode())


class Scene:
    """A publisher; a host beside a node; a reader with a node and a model of its own, and one without."""

    def __init__(self, root: Path) -> None:
        self.model = tiny_model(root / "llama", "llama", head_dim=32)
        env = {"KVSWAP_BLOCK_TOKENS": str(BLOCK), "KVSWAP_ALSO_CODEC": ""}
        flags = ["--model", str(self.model), "--dtype", "float32"]
        self.node = Daemon(root / "node", flags, dict(env)).start()
        self.reader = Daemon(root / "reader", flags, dict(env)).start()
        self.poor = Daemon(root / "poor", [], env | {"KVSWAP_MODELS": str(root / "none")}).start()
        (root / "manual.txt").write_text(TEXT)
        self.file = root / "manual.txt"
        prices = [f"--{name}-price={price}" for name, price in PRICES.items()]
        engine = [f"--engine-arg={a}" for a in ("--enforce-eager", "--max-model-len=2048", f"--block-size={PAGE}")]
        self.host = Host(
            self.node.home,
            *("--model", str(self.model), "--dtype", "float32", "--warm-seconds=5", *prices, *engine),
            KVSWAP_BLOCK_TOKENS=str(BLOCK),
        )
        self.on_new_request = self.host.run("add", str(self.file))
        self.invited = self.host.run("invite", "reader")
        for node in (self.reader, self.poor):
            node.client.host_join(self.invited["invitation"], plain=True)
        until(lambda: self.documents()[0]["first_seconds"], what="the document to be warm")

    @property
    def peer(self) -> str:
        return str(self.host.info["host"])

    def documents(self) -> list[dict[str, Any]]:
        return list(self.call("/v1/documents")["documents"])

    def call(self, path: str, body: dict[str, Any] | None = None, token: str | None = None) -> dict[str, Any]:
        """As any program does that speaks HTTP.  Raises `HTTPError`."""
        request = urllib.request.Request(self.host.info["url"] + path)
        request.add_header("Authorization", f"Bearer {self.invited['token'] if token is None else token}")
        if body is not None:
            request.data = json.dumps(body).encode()
        with urllib.request.urlopen(request, timeout=600) as answer:
            return dict(json.load(answer))

    def refused(self, path: str, body: dict[str, Any] | None = None, token: str | None = None) -> tuple[int, str]:
        with pytest.raises(urllib.error.HTTPError) as raised:
            self.call(path, body, token)
        return raised.value.code, str(json.load(raised.value)["error"]["message"])

    def usage_log(self) -> UsageLog:
        return UsageLog(self.node.home / "host.sqlite3")

    def stop(self) -> None:
        self.host.stop()
        for node in (self.node, self.reader, self.poor):
            node.stop()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("hosting"))
    yield made
    made.stop()


def question(text: str = "What does it say?", **more: Any) -> dict[str, Any]:
    return {"document": REFERENCE, "messages": [{"role": "user", "content": text}], "max_tokens": 8} | more


def test_a_node_without_a_model_asks_a_host(scene: Scene) -> None:
    """The document's digest and the question go there; the answer comes back with a signed record of the read."""
    answer = scene.poor.client.ask(REFERENCE, "What does it say?", max_tokens=8, host=scene.peer, ignore_eos=True)
    told = answer["host"]
    (shown,) = scene.documents()
    assert len(answer["token_ids"]) == told["made_tokens"] == 8
    assert told["cached_tokens"] >= shown["tokens"] - PAGE
    assert told["problem"] is None
    read = read_receipt(base64.b64decode(told["receipt"])).read
    assert (read.host, read.document) == (scene.peer, bytes.fromhex(REFERENCE[7:]))
    assert read.client.startswith("guest-")  # of this invitation, whatever the name
    picodollars = read.read * 30_000 + read.prefilled * 300_000 + read.made * 600_000
    assert read.picodollars == picodollars
    assert told["dollars"] == pytest.approx(picodollars / 1e12)


def test_it_says_what_the_model_says(scene: Scene) -> None:
    """In float32 the host's answer is the one that the reader's own model gives after its own prefill."""
    own = scene.reader.client.ask(REFERENCE, "And then?", max_tokens=8, text=TEXT, prefill=True, ignore_eos=True)
    hosted = scene.reader.client.ask(REFERENCE, "And then?", max_tokens=8, host=scene.peer, ignore_eos=True)
    assert hosted["token_ids"] == own["token_ids"]


def test_every_read_is_on_record_and_no_record_can_be_changed(scene: Scene) -> None:
    usage = scene.call("/v1/chat/completions", question())["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0
    usage_log = scene.usage_log()
    count = usage_log.check()
    assert count == usage["kvswap"]["number"]
    last = usage_log.receipts(after=count - 1)[0]
    assert last.envelope == base64.b64decode(usage["kvswap"]["receipt"])
    check_price(last.read, read_offer(base64.b64decode(scene.call("/v1/offer")["offer"])))
    own = scene.call(f"/v1/usage?after={count - 1}")["reads"]
    assert [r["number"] for r in own] == [count]
    assert scene.host.run("log")["records"] == count


def test_a_stream_is_metered_too_also_when_nobody_listens_to_its_end(scene: Scene) -> None:
    request = urllib.request.Request(scene.host.info["url"] + "/v1/chat/completions")
    request.add_header("Authorization", f"Bearer {scene.invited['token']}")
    request.data = json.dumps(question(stream=True, max_tokens=600, ignore_eos=True)).encode()
    usage_log = scene.usage_log()
    before = usage_log.check()
    with urllib.request.urlopen(request, timeout=600) as answer:
        assert json.loads(answer.readline().removeprefix(b"data:"))["object"] == "chat.completion.chunk"
    until(lambda: usage_log.check() > before, what="the record of a broken read")
    read = usage_log.receipts(after=before)[0].read
    assert read.document is not None and 0 < read.made < 600 and read.read > 0
    whole = question(stream=True, stream_options={"include_usage": True})
    request.data = json.dumps(whole).encode()
    with urllib.request.urlopen(request, timeout=600) as answer:
        lines = [line for line in answer.read().split(b"\n\n") if line]
    assert lines[-1] == b"data: [DONE]"
    assert json.loads(lines[-2].removeprefix(b"data:"))["usage"]["kvswap"]["receipt"]


def test_nobody_asks_without_a_token_that_holds(scene: Scene) -> None:
    body = question()
    for token in ("", "x" * 43, scene.invited["token"][:-1]):
        assert scene.refused("/v1/chat/completions", body, token)[0] == 401
    brief = scene.host.run("invite", "brief")
    assert scene.call("/v1/chat/completions", body, brief["token"])["usage"]
    scene.host.run("revoke", "brief")
    assert scene.refused("/v1/chat/completions", body, brief["token"])[0] == 401
    scene.poor.client.host_join(brief["invitation"], plain=True)
    with pytest.raises(TokenRefused):
        scene.poor.client.ask(REFERENCE, "What?", host=scene.peer)
    scene.poor.client.host_join(scene.invited["invitation"], plain=True)


def test_a_quota_holds_before_anything_is_computed(scene: Scene) -> None:
    (shown,) = scene.documents()
    small = scene.host.run("invite", "small", "--daily-tokens", str(shown["tokens"] + 200), "--concurrent", "1")
    before = scene.usage_log().check()
    assert scene.refused("/v1/chat/completions", question(max_tokens=500), small["token"])[0] == 429
    assert scene.usage_log().check() == before
    assert scene.call("/v1/chat/completions", question(), small["token"])["usage"]
    status, message = scene.refused("/v1/chat/completions", question(), small["token"])
    assert (status, "a day" in message) == (429, True)


def test_what_is_the_host_s_to_say_is_refused_by_name(scene: Scene) -> None:
    for field, value in (
        ("cache_salt", "mine"),
        ("kv_transfer_params", {"kvswap": {"publish": True}}),
        ("logprobs", 5),
        ("n", 2),
        ("model", "other"),
        ("max_tokens", 10**6),
        ("temperature", "hot"),
        ("messages", [{"role": "tool", "content": "x"}]),
    ):
        status, message = scene.refused("/v1/chat/completions", question(**{field: value}))
        assert status == 400 and (field in message or str(value) in message)
    assert scene.refused("/v1/chat/completions", question(document="sha256:" + "0" * 64))[0] == 404


def test_clients_do_not_share_what_they_read(scene: Scene) -> None:
    """The document comes from the node's store for each of them; what one wrote after it is no hit for another."""
    text = "A long question of one's own, with more words than a page of the cache has tokens. " * 6
    other = scene.host.run("invite", "other")
    first = scene.call("/v1/chat/completions", question(text))["usage"]
    again = scene.call("/v1/chat/completions", question(text))["usage"]
    theirs = scene.call("/v1/chat/completions", question(text), other["token"])["usage"]
    own, cached = (u["prompt_tokens_details"]["cached_tokens"] for u in (again, theirs))
    (shown,) = scene.documents()
    assert own > shown["tokens"] >= max(cached, first["prompt_tokens_details"]["cached_tokens"])


def test_without_a_document_and_as_completions(scene: Scene) -> None:
    plain = scene.call("/v1/completions", {"prompt": "One two three", "max_tokens": 3})
    assert plain["object"] == "text_completion" and plain["usage"]["completion_tokens"] == 3
    onward = scene.call("/v1/completions", {"prompt": " and so", "max_tokens": 3, "document": REFERENCE})
    assert onward["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert [m["id"] for m in scene.call("/v1/models")["data"]] == [scene.model.name]


def test_the_plan_weighs_a_host_with_all_else(scene: Scene) -> None:
    """With a budget of nothing it is not asked; where time alone counts the faster way wins, whichever it is."""
    plan = scene.reader.client.plan(REFERENCE, text=TEXT, host="auto")
    (row,) = plan["hosts"]
    assert row["peer"] == scene.peer and row["tariff"] == PRICES
    assert plan["host"]["dollars"] > 0 and plan["prefill"]["seconds"] > 0
    mean = scene.reader.client.ask(
        REFERENCE, "Why?", text=TEXT, max_tokens=4, host="auto", objective=Objective(max_dollars=0.0)
    )
    assert "host" not in mean and mean["plan"]["action"] != "host"
    fast = scene.reader.client.plan(REFERENCE, text=TEXT, host="auto", objective=Objective("time"))
    ways = {name: fast[name]["seconds"] for name in ("prefill", "fetch", "hybrid", "host") if fast[name]}
    assert fast["action"] == min(ways, key=lambda name: ways[name])
    alone = scene.poor.client.ask(REFERENCE, "Why?", max_tokens=4, host="auto")
    assert alone["plan"]["action"] == "host"


def test_a_host_that_is_not_there_or_has_not_invited(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        scene.node.client.ask(REFERENCE, "Why?", host=scene.poor.publisher)
    scene.host.run("rm", str(scene.file))
    with pytest.raises(NotFound):
        scene.poor.client.ask(REFERENCE, "Why?", host=scene.peer)
    with pytest.raises(NotFound):
        scene.poor.client.ask(REFERENCE, "Why?", host="auto")
    scene.host.run("add", str(scene.file))
    assert scene.poor.client.ask(REFERENCE, "Why?", max_tokens=2, host=scene.peer)["host"]["problem"] is None


def test_an_artifact_that_went_missing_is_brought_back(scene: Scene) -> None:
    """It is pinned, but somebody may remove it all the same: then it is prefilled again, and readers lose nothing."""
    scene.node.client.remove(scene.on_new_request["artifact"])
    answer = scene.poor.client.ask(REFERENCE, "Why?", max_tokens=2, host=scene.peer)
    assert answer["token_ids"]
    scene.host.run("add", str(scene.file))
