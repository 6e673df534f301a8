"""The first computation of a process is right, also where detecting the processor's kernels is slow."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import pytest

from tests.support import ROOT

COUNT = 10


@pytest.fixture(scope="module")
def first_publish() -> ModuleType:
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and LD_PRELOAD")
    spec = importlib.util.spec_from_file_location("first_publish", ROOT / "benchmarks" / "first_publish.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.faults
@pytest.mark.parametrize("way", ["load", "prefix"])
def test_no_first_publish_of_a_process_is_wrong(first_publish: ModuleType, way: str) -> None:
    assert first_publish.run(COUNT, way) == {"publishes": COUNT, "wrong": 0}


@pytest.mark.faults
@pytest.mark.parametrize("way", ["load", "prefix"])
def test_without_the_cure_first_publishes_are_wrong(first_publish: ModuleType, way: str) -> None:
    """The library that makes detection slow does what it is there for."""
    import torch

    if "MKL" not in torch.__config__.show():
        pytest.skip("a torch without MKL")
    assert first_publish.run(COUNT, way, without=True)["wrong"] >= 0.9 * COUNT


def test_settling_imports_nothing_but_torch_and_happens_once() -> None:
    code = (
        "import sys\n"
        "from kvswap.model.kernels import initialize_kernels\n"
        "assert 'torch' not in sys.modules, 'importing it must cost nothing'\n"
        "initialize_kernels(); initialize_kernels()\n"
        "assert 'transformers' not in sys.modules and 'vllm' not in sys.modules\n"
        "own = [name for name in sys.modules if name.startswith('kvswap.')]\n"
        "assert sorted(own) == ['kvswap.core', 'kvswap.core.version', 'kvswap.model', 'kvswap.model.kernels'], own\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=600)


def test_each_function_of_both_kinds_is_computed_once_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads begin at once; a second call computes nothing."""
    import torch

    from kvswap.model import kernels as settling

    computed: list[tuple[str, torch.dtype, int]] = []

    def counted(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        real = getattr(torch, name)

        def compute(value: torch.Tensor) -> torch.Tensor:
            computed.append((name, value.dtype, threading.get_ident()))
            return real(value)

        return compute

    for name in ("cos", "sin", "exp", "tanh", "erf"):
        monkeypatch.setattr(torch, name, counted(name))
    monkeypatch.setattr(settling, "_initialized", False)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(settling.initialize_kernels) for _ in range(32)]:
            done.result()
    names = {(name, dtype) for name, dtype, _ in computed}
    assert len(computed) == len(names) == 10  # each of the five in two widths, once
    assert len({thread for *_, thread in computed}) == 1


def test_an_engine_settles_before_it_makes_its_model() -> None:
    """By the entry point that vLLM calls in each of its processes."""
    import tomllib

    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["vllm.general_plugins"]
    (target,) = points.values()
    assert target == "kvswap.model.kernels:initialize_kernels"
