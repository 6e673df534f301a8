"""Loading into a caller's model: whatever a disk, a library or a GPU raises comes out as one of kvswap's errors."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from kvswap.client import loading
from kvswap.core.errors import Incompatible, KvswapError, LocalFault, NotFound, Unexpected

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
