"""How a process computes beside its model: the processor's own instructions, and the precision that is in force."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from kvswap.client.loading import LocalPrefill, live_identity
from kvswap.client.sync import Client
from kvswap.core.errors import Incompatible
from kvswap.model.load import LoadedModel, load_model
from kvswap.trust.accusation import comparable
from tests.support import DOCUMENT

TEXT = DOCUMENT.read_text()[:600]


def numerics(dtype: str, device: str = "cpu") -> Any:
    class Model:
        class config:  # noqa: N801
            _attn_implementation = "sdpa"

    return LoadedModel(Model(), None, None, dtype, device).numerics()


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A processor with these instructions, as torch tells of it."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)

    def have(*names: str, old: bool = False, older: bool = False) -> None:
        if old or older:  # a torch that tells of some of them, or of none
            monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        else:
            told = {name: name in names for name in ("amx_tile", "avx512_bf16", "avx512_fp16", "avx2", "cpu_name")}
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
        for name in ("amx_tile", "avx512_bf16", "amx_fp16"):
            if older:
                monkeypatch.delattr(torch.cpu, f"_is_{name}_supported", raising=False)
            else:
                monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in names, raising=False)

    return have


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("old", [False, True])
def test_processors_that_compute_narrow_numbers_otherwise_are_other_classes(
    processor: Callable[..., None], dtype: str, old: bool
) -> None:
    classes = []
    for names in ((), ("avx512_bf16",), ("amx_tile",), ("amx_tile", "avx512_bf16")):
        processor(*names, old=old)
        classes.append(numerics(dtype))
        assert classes[-1].isa == " ".join(["AVX512", *names])
    for one in classes:
        for other in classes:
            assert (comparable(one, other) == "") == (one is other)


def test_what_is_computed_in_float32_or_elsewhere_is_of_the_class_it_was(processor: Callable[..., None]) -> None:
    processor("amx_tile", "avx512_bf16", "avx512_fp16", "avx2")
    assert numerics("float32").isa == "AVX512"
    assert numerics("bfloat16", "mps").isa == ""
    processor(older=True)
    assert numerics("bfloat16").isa == "AVX512"


def test_a_library_that_is_kept_from_what_the_processor_has_is_another_class(
    processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor("amx_tile")
    free = numerics("bfloat16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core")
    assert comparable(free, numerics("bfloat16")) and not comparable(free, msgspec.structs.replace(free, threads=9))


# -- precision ---------------------------------------------------------------------------------------


@contextmanager
def matmul(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def mkldnn() -> Iterator[None]:
    if not hasattr(torch.backends.mkldnn, "matmul"):
        pytest.skip("this torch has no precision of its own for mkldnn")
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


# what is in force, and what the hint has to name
REDUCED: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "high": (lambda: matmul("high"), 'torch.set_float32_matmul_precision("highest")'),
    "medium": (lambda: matmul("medium"), 'torch.set_float32_matmul_precision("highest")'),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), "torch.autocast"),
    "mkldnn": (mkldnn, 'torch.backends.mkldnn.matmul.fp32_precision = "ieee"'),
    "TF32": (lambda: variable("NVIDIA_TF32_OVERRIDE", "1"), "unset NVIDIA_TF32_OVERRIDE"),
    "oneDNN": (lambda: variable("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"), "unset ONEDNN_DEFAULT_FPMATH_MODE"),
}
reduced = pytest.mark.parametrize("way", list(REDUCED))


@reduced
def test_a_callers_reduced_precision_is_refused_by_name_before_anything_is_done(
    tiny_models: dict[str, Path], tmp_path: Path, way: str
) -> None:
    loaded = load_model(tiny_models["llama"], "llama", "float32")
    model, tokenizer = loaded.model, loaded.tokenizer
    enter, hint = REDUCED[way]
    for use in (
        lambda: live_identity(model),
        lambda: LocalPrefill(TEXT, model, tokenizer, 64),
        lambda: Client(tmp_path).prefix(TEXT, model, tokenizer),  # no daemon runs: it would be asked next
    ):
        with enter(), pytest.raises(Incompatible) as refused:
            use()
        assert refused.value.details["field"] == "numerics" and refused.value.exit_code == 7
        assert hint in refused.value.hint, refused.value.hint
    assert live_identity(model)


@pytest.mark.parametrize("value", [("NVIDIA_TF32_OVERRIDE", "0"), ("ONEDNN_DEFAULT_FPMATH_MODE", "strict")])
def test_a_variable_that_asks_for_full_precision_is_no_reason(
    tiny_models: dict[str, Path], value: tuple[str, str]
) -> None:
    model = load_model(tiny_models["llama"], "llama", "float32").model
    with variable(*value):
        assert live_identity(model)


@reduced
def test_with_reduced_precision_in_force_nobody_is_condemned(tiny_models: dict[str, Path], way: str) -> None:
    """The reader's own cache, its control, is as far off as what it compares: here everything seems a lie."""
    from kvswap.trust.accusation import accuses
    from tests.attacks.kit import ATTACKS, Scene, forge, run_checks

    loaded = load_model(tiny_models["llama"], "llama", "float32")
    ids = loaded.tokenize(TEXT)
    scene = Scene(loaded, TEXT, ids, ids, 64)
    lie = forge(scene, ATTACKS["heads exchanged"](scene))
    for enter, accused in ((nullcontext, True), (REDUCED[way][0], False)):
        with enter():
            (step,), _ = run_checks(lie, scene, [3], None)
        assert accuses(step) == accused, step
    assert "precision" in step.why or "autocast" in step.why


def test_a_model_that_is_loaded_by_kvswap_computes_in_full_precision(tiny_models: dict[str, Path]) -> None:
    with matmul("medium"):
        load_model(tiny_models["llama"], "llama", "float32")
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_model_process_inherits_nothing_that_changes_how_it_computes() -> None:
    from kvswap.daemon.child import environment
    from kvswap.model.precision import VARIABLES

    assert {"NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE"} <= {*VARIABLES}
    assert (
        int(environment({})["GOMP_SPINCOUNT"])
        < 300_000
        == int(environment({"GOMP_SPINCOUNT": "300000"})["GOMP_SPINCOUNT"])
    )
    given = environment(dict.fromkeys(VARIABLES, "1") | {"HOME": "/home"})
    assert not given.keys() & {*VARIABLES} and given["HOME"] == "/home"
    page = (Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()
    assert [name for name in VARIABLES if f"`{name}`" not in page] == []
