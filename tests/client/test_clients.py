from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kvswap import AsyncClient, Client
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
