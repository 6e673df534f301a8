"""Loading into a caller's model: whatever a disk, a library or a GPU raises comes out as one of kvswap's errors."""

from __future__ import annotations

import base64
import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors import SafetensorError

from kvswap.artifact.specs import LayerSpec, TensorSpec
from kvswap.client import loading
from kvswap.core.errors import Incompatible, KvswapError, LocalFault, NotFound, Unexpected, Untrusted
from tests.support import FULL, SLIDING, Ingested, identity, make_artifact

ERRORS = {
    "not allowed": (PermissionError(errno.EACCES, "Permission denied", "/x"), LocalFault),
    "a failing disk": (OSError(errno.EIO, "Input/output error", "/x"), LocalFault),
    "no file handles": (OSError(errno.EMFILE, "Too many open files", "/x"), LocalFault),
    "damaged weights": (SafetensorError("Error while deserializing header: InvalidHeader"), LocalFault),
    "no memory of the GPU": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), LocalFault),
    "no memory": (MemoryError(), LocalFault),
    "a fault": (RuntimeError("something else"), Unexpected),
    "ours": (NotFound("it is gone"), NotFound),
}
MODEL = SimpleNamespace(device="cpu", dtype=torch.float32, config=None, named_parameters=lambda: iter(()))


def local() -> loading.LocalPrefill:
    made = loading.LocalPrefill.__new__(loading.LocalPrefill)
    made._loaded, made._ids, made._block_tokens, made.tokens = SimpleNamespace(model=MODEL), [1], 8, 1  # type: ignore[assignment]
    return made


ENTRIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "load_artifact": ("kvswap.client.loading.statement_of", lambda: loading.load_artifact({}, MODEL)),
    "load_for": ("kvswap.client.loading.statement_of", lambda: loading.load_for("text", {}, MODEL, None, 1)),
    "live_identity": ("kvswap.model.live.live_identity", lambda: loading.live_identity(MODEL)),
    "check_precision": ("kvswap.model.precision.check", lambda: loading.check_precision(MODEL)),
    "LocalPrefill": ("kvswap.model.load.LoadedModel", lambda: loading.LocalPrefill("text", MODEL, None, 8)),
    "LocalPrefill.beginning": ("kvswap.client.loading.live_identity", lambda: local().cached_prefix()),
    "LocalPrefill.cache": ("kvswap.model.cache.new_cache", lambda: local().cache(1)),
}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_whatever_is_raised_while_loading_is_one_of_ours(
    entry: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, kind = ERRORS[name]
    where, call = ENTRIES[entry]

    def raises(*arguments: Any, **named: Any) -> Any:
        raise error.with_traceback(None)

    monkeypatch.setattr("kvswap.model.precision.check", lambda device: None)
    monkeypatch.setattr(where, raises)
    with pytest.raises(KvswapError) as told:
        call()
    assert type(told.value) is kind and told.value.cause and told.value.hint
    if kind is LocalFault:
        assert "a fault in kvswap" not in told.value.message and told.value.origin is error


def test_a_model_whose_weights_are_elsewhere_is_named() -> None:
    """Offloaded by `device_map`: a part of its weights is on no device until a layer is computed."""
    model = torch.nn.Linear(2, 2, device="meta")
    with pytest.raises(Incompatible, match="'weight' is not in memory") as told:
        loading.live_identity(model)
    assert told.value.details["field"] == "model" and "device_map" in told.value.hint


@pytest.fixture(scope="module")
def in_memory(tiny_models: dict[str, Path]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_models["llama"], dtype=torch.float32)


def details_of(made: Ingested, standing: str) -> Any:
    envelope = base64.b64encode(made.statement.envelope).decode()
    return SimpleNamespace(
        artifact=made.id, envelope=envelope, chunks_directory="/nowhere", key=None, standing=standing
    )


WIDE = LayerSpec("latent", (TensorSpec("k", "token", (64, 512)), TensorSpec("v", "token", (1, 8))))
ODD = {
    "fewer layers": lambda own: own[:1],
    "exchanged": lambda own: tuple(replace(s, tensors=s.tensors[::-1]) for s in own),
    "renamed": lambda own: tuple(
        replace(s, tensors=tuple(replace(t, name=t.name * 2) for t in s.tensors)) for s in own
    ),
    "called latent": lambda own: tuple(replace(s, kind="latent") for s in own),
    "one more": lambda own: tuple(replace(s, tensors=(*s.tensors, TensorSpec("index", "token", (8,)))) for s in own),
    "a state more": lambda own: tuple(
        replace(s, kind="full+state", tensors=(*s.tensors, TensorSpec("conv.0", "checkpoint", (8, 4)))) for s in own
    ),
    "too wide": lambda own: (WIDE,) * len(own),
    "a window": lambda own: tuple(replace(s, kind="sliding", window=8) for s in own),
}


@pytest.mark.parametrize("odd", ODD)
def test_other_layers_than_the_models_are_refused_before_anything_is_reserved(
    odd: str, in_memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kvswap.model.cache import layer_specs, new_cache
    from kvswap.model.live import live_identity
    from kvswap.model.prefill import forward

    cache = new_cache(in_memory.config, 1)
    forward(loading._in_memory(in_memory), cache, [0], 0)
    specs = ODD[odd](tuple(layer_specs(cache)))
    points = [16] if any(s.has_states for s in specs) else []
    made = make_artifact(tokens=16, dtype="float32", specs=specs, checkpoints=points, codec="raw", model=identity())
    monkeypatch.setattr(loading, "live_identity", lambda model: made.manifest.model.digest)
    assert live_identity(in_memory) != made.manifest.model.digest
    monkeypatch.setattr("kvswap.artifact.assembly._allocate", lambda *_: pytest.fail("reserved"))
    with pytest.raises(Incompatible) as told:
        loading.load_artifact(details_of(made, "trusted"), in_memory)
    assert told.value.details["field"] == "layout.layers"


@pytest.mark.parametrize("standing", ["verified", "unverified", "trusted", "own"])
def test_of_an_untrusted_publishers_windows_only_the_whole_is_loaded(
    standing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_artifact(tokens=40, specs=(SLIDING, FULL))
    monkeypatch.setattr(loading, "live_identity", lambda model: made.manifest.model.digest)
    monkeypatch.setattr("kvswap.model.shape.require_layers", lambda loaded, manifest: None)
    monkeypatch.setattr("kvswap.model.reach.check", lambda *_: None)
    monkeypatch.setattr("kvswap.artifact.assembly.load", lambda *_, **given: given["tokens"])
    monkeypatch.setattr("kvswap.model.cache.build_cache", lambda config, tensors, stop, device: stop)
    config = SimpleNamespace(get_text_config=lambda decoder: None)
    model = SimpleNamespace(device="cpu", dtype=torch.bfloat16, config=config)
    details = details_of(made, standing)
    assert loading.load_artifact(details, model) == 40 == loading.load_artifact(details, model, tokens=40)
    if standing in ("own", "trusted"):
        assert loading.load_artifact(details, model, tokens=16) == 16
    else:
        with pytest.raises(Untrusted, match=f"it is {standing}"):
            loading.load_artifact(details, model, tokens=16)
    plain = make_artifact(tokens=40, specs=(FULL,), model=identity())
    assert loading.load_artifact(details_of(plain, standing), model, tokens=16) == 16
