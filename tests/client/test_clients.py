from __future__ import annotations

import asyncio
import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kvswap import AsyncClient, Client, errors
from kvswap.client import loading
from kvswap.client.old import NAMES
from kvswap.client.values import CacheReport, read_document
from kvswap.core.errors import DaemonNotRunning, Incompatible, NotFound
from kvswap.core.ids import document_digest
from tests.support import DOCUMENT, Daemon


def verbs(kind: type) -> dict[str, list[str]]:
    return {
        name: list(inspect.signature(function).parameters)
        for name, function in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_clients_have_the_same_verbs_and_parameters() -> None:
    assert verbs(Client) == verbs(AsyncClient)
    for name in verbs(AsyncClient):
        function = getattr(AsyncClient, name)
        assert inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function), name


@pytest.mark.skipif(
    not (Path(sys.executable).with_name("ruff").exists() or shutil.which("ruff")),
    reason="ruff lays it out; see make lint",
)
def test_the_blocking_client_is_made_from_the_asyncio_one() -> None:
    script = Path(__file__).parents[2] / ".ci/unasync"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("old", NAMES)
def test_an_old_name_works_hidden_and_warns(old: str, tmp_path: Path) -> None:
    for client in (Client(tmp_path), AsyncClient(tmp_path)):
        assert old not in dir(client) and NAMES[old] in dir(client)
        with pytest.warns(DeprecationWarning, match=NAMES[old]):
            verb = getattr(client, old)
        assert callable(verb)
    with pytest.raises(AttributeError):
        _ = client.nothing


def test_the_old_prefix_raises_without_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "check_precision", lambda model: None)
    with pytest.warns(DeprecationWarning), pytest.raises(DaemonNotRunning):
        Client(tmp_path).prefix("text", None, None)


@pytest.mark.parametrize(
    "given",
    [
        {"url": "http://192.0.2.1:80", "token": "t"},
        {"url": "http://127.0.0.1:99999", "token": "t"},
        {"url": "http://127.0.0.1:80"},
        {"url": "https://127.0.0.1:80", "token": "t"},
        {"url": "unix:daemon.sock"},
        {"url": "http://127.0.0.1:80", "token": "a\r\nb"},
        {"token": "t"},
        {"home": "/x", "url": "unix:/x/daemon.sock"},
    ],
    ids=str,
)
def test_a_url_that_no_daemon_has_is_refused(given: dict[str, str]) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(errors.UsageError):
            kind(**given)


def test_at_a_url_without_a_daemon_both_say_so(tmp_path: Path) -> None:
    for given in ({"url": f"unix:{tmp_path}/daemon.sock"}, {"url": "http://127.0.0.1:1", "token": "t"}):
        with Client(**given) as client, pytest.raises(errors.DaemonNotRunning, match=given["url"]):
            client.status()

        async def ask(given: dict[str, str] = given) -> None:
            async with AsyncClient(**given) as client:
                await client.status()

        with pytest.raises(errors.DaemonNotRunning, match=given["url"]):
            asyncio.run(ask())


def test_a_report_answers_as_the_dict_it_was() -> None:
    report = CacheReport.of("fetch", "why", 0.0, 3, 2, None)
    with pytest.warns(DeprecationWarning):
        assert report["tokens"] == report.tokens == 3
    with pytest.warns(DeprecationWarning), pytest.raises(KeyError):
        report["nothing"]


def test_a_path_is_read_and_what_is_no_text_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a\r\nb")
    assert read_document("a") == "a" and read_document(path) == path.read_bytes().decode()
    path.write_bytes(b"\xff")
    with pytest.raises(errors.InvalidDocument):
        read_document(path)


def test_importing_the_client_is_light() -> None:
    script = (
        "import sys, kvswap; kvswap.Client; kvswap.AsyncClient; "
        "print([m for m in ('torch', 'transformers', 'aiohttp', 'libp2p', 'trio', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_a_daemon_both_say_so(tmp_path: Path) -> None:
    with pytest.raises(DaemonNotRunning):
        Client(tmp_path).status()
    with pytest.raises(DaemonNotRunning):
        asyncio.run(AsyncClient(tmp_path).status())


def test_both_clients_against_a_real_node(
    daemon: Callable[..., Daemon], tiny_models: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tiny_models["gemma3"]
    node = daemon("a", "--model", str(directory), "--dtype", "float32", KVSWAP_BLOCK_TOKENS="64")
    client, text = Client(node.home), DOCUMENT.read_text()[:1200]
    events: list[dict] = []
    published = client.publish(text, on_event=events.append)
    assert {e["event"] for e in events} == {"prefill"}
    artifact = client.fetch(document_digest(text.encode()))
    assert artifact.id == published["artifact"] and artifact.tokens == published["tokens"]

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    cache = artifact.load(model)
    assert cache.layers[0].get_seq_length() == artifact.tokens
    with torch.no_grad():
        ids = torch.tensor([tokenizer("What?", add_special_tokens=False)["input_ids"]])
        positions = torch.arange(artifact.tokens, artifact.tokens + ids.shape[1])[None]
        mine = model(ids, past_key_values=cache, position_ids=positions).logits
        fetched, report = client.prefix(text, model, tokenizer, block_tokens=64)
        assert report["action"] == "fetch" and report["artifact"] == artifact.id
        again = model(ids, past_key_values=fetched, position_ids=positions).logits
        local, told = client.prefix(text + "changed", model, tokenizer, block_tokens=64)
        assert told["action"] == "prefill" and "nobody offers" in told["reason"]
    assert torch.equal(mine, again)

    async def asynchronously() -> None:
        other = AsyncClient(node.home)
        assert (await other.status())["artifacts"] == 1
        assert (await other.artifacts())[0]["artifact"] == artifact.id
        found = await other.fetch(artifact.id)
        loaded = await found.load(model)
        for left, right in zip(loaded.layers, artifact.load(model).layers, strict=True):
            assert torch.equal(left.keys, right.keys) and torch.equal(left.values, right.values)
        answer = await other.ask(artifact.id, "What?", max_tokens=5, ignore_eos=True)
        assert answer["token_ids"] == client.ask(artifact.id, "What?", max_tokens=5, ignore_eos=True)["token_ids"]
        _, report = await other.prefix(text, model, tokenizer)
        assert report["action"] == "fetch"
        with pytest.raises(NotFound):
            await other.show("sha256:" + "0" * 64)

    asyncio.run(asynchronously())

    # a model that is not the one the artifact was made by is refused, whatever it says it is
    with torch.no_grad():
        changed = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        next(changed.parameters()).view(-1)[0] += 0.5
    with pytest.raises(Incompatible) as caught:
        artifact.load(changed)
    assert caught.value.details["field"] == "model"
    with pytest.raises(Incompatible) as caught:
        artifact.load(AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16))
    assert caught.value.details["field"] == "dtype"


def test_without_a_daemon_a_cache_is_prefilled_here(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = tiny_models["gemma3"]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer, text = AutoTokenizer.from_pretrained(directory), DOCUMENT.read_text()[:400]
    with Client(tmp_path) as client:
        cache, report = client.get_cache(text, model, tokenizer, block_tokens=64)
        with pytest.raises(DaemonNotRunning):
            client.get_cache(text, model, tokenizer, prefill_alone=False)
    assert report.action == "prefill" and report.artifact is None and report.fetched_tokens == 0
    assert "no kvswap daemon" in report.reason
    assert cache.layers[0].get_seq_length() == report.tokens > 0

    async def asynchronously() -> None:
        async with AsyncClient(tmp_path) as other:
            again, told = await other.get_cache(text, model, tokenizer, block_tokens=64)
        assert told.tokens == report.tokens
        assert torch.equal(again.layers[0].keys, cache.layers[0].keys)

    asyncio.run(asynchronously())


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_parameters_work_by_their_old_names(kind: type[Any], tmp_path: Path) -> None:
    client = kind(tmp_path)

    def call(verb: str, *arguments: Any, **named: Any) -> Any:
        done = getattr(client, verb)(*arguments, **named)
        return asyncio.run(done) if kind is AsyncClient else done

    for verb, named in (
        ("fetch", {"strangers": True, "inexact": True}),
        ("plan", {"inexact": True}),
        ("beginnings", {}),
    ):
        arguments = () if verb == "beginnings" else ("sha256:" + "0" * 64,)
        with pytest.warns(DeprecationWarning) as told, pytest.raises(DaemonNotRunning):
            call(verb, *arguments, **named)
        assert len(told) == max(1, len(named))
    with pytest.raises(TypeError, match="allow_lossy"):
        call("plan", "sha256:" + "0" * 64, **{"inexact": True, "allow_lossy": True})
    assert "strangers" not in str(inspect.signature(client.fetch)) and "beginning" not in dir(Client)
