"""What computes a model beside torch and transformers: quantisers, kernels, adapters, and weights that were widened.

A kernel of another package sums in another order than PyTorch's own code, a quantiser multiplies in its own way, and
weights in fp8 or mxfp4 are widened where a machine has no kernel for them.  Two machines that differ in this compute
other bits from the same files, so `numerics.attention` names it, by what is in the model rather than by what is
installed.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from typing import Any

from kvswap.model import quantisation

_BASIS = {"torch", "transformers", "kvswap", "builtins", "__main__"}  # they have fields of their own, or no version
_SEPARATOR = "; "
_HUB = re.compile(r"/(?:kernels|models)--([\w.-]+)/snapshots/([0-9a-f]+)/")


def attention_text(model: Any) -> str:
    """Return how the model's layers are computed, for `numerics.attention`.

    It is the attention's name, and after it what else computes: `sdpa; bitsandbytes 0.50.2; 8bit`.
    """
    return _SEPARATOR.join([str(model.config._attn_implementation), *described(model)])


def described(model: Any) -> list[str]:
    """Name each package whose code runs in the model with its version, and how quantised weights are computed."""
    named = {root for root in map(_root, _code(model)) if root and root not in _BASIS}
    versions = {*map(_with_version, named), *_from_hub()}
    return [*sorted(versions.union(quantisation.computed_as(model))), *_experts(model)]


def _code(model: Any) -> Iterator[Any]:
    """Yield the modules, functions and tensors that a pass through the model runs or reads."""
    seen: set[str] = set()
    for module in getattr(model, "modules", tuple)():
        yield type(module)
        yield from (
            value for value in vars(module).values() if isinstance(value, types.FunctionType | types.MethodType)
        )
        own = type(module).__module__
        if own not in seen and _root(type(module)) == "transformers":
            seen.add(own)
            yield from _replaced(own)
        for tensor in module._parameters.values():
            if tensor is not None:
                yield from (type(tensor), type(tensor.data))


def _replaced(name: str) -> Iterator[Any]:
    """Yield what runs in the place of functions of a file of transformers, which looks for faster ones."""
    for value in vars(sys.modules[name]).values():
        if isinstance(value, type | types.ModuleType):
            continue
        function = getattr(value, "forward", value)  # a function that the hub's kernels may replace is a module
        function = getattr(function, "__func__", function)
        for cell in _cells(function):
            if callable(cell):
                yield cell


def _cells(function: Any) -> Iterable[Any]:
    code = getattr(function, "__code__", None)
    names = code.co_freevars if code is not None else ()
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        if name == "implementation":
            yield cell.cell_contents


def _from_hub() -> set[str]:
    """Name the kernels that this process has loaded from the hub, each by its repository and commit."""
    paths = [str(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())]
    return {f"kernels {found[1].replace('--', '/')} {found[2][:12]}" for path in paths if (found := _HUB.search(path))}


def _root(thing: Any) -> str:
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]


@cache
def _with_version(root: str) -> str:
    """Return a package's distribution and version; of code that no installed package holds, its own name."""
    for distribution in packages_distributions().get(root, [root])[:1]:
        try:
            return f"{distribution.lower()} {version(distribution)}"
        except PackageNotFoundError:
            break
    return root[:80]


def _experts(model: Any) -> list[str]:
    """Return how experts are computed, where that is not what transformers chooses by itself."""
    chosen = getattr(model.config, "_experts_implementation", None)
    choose = getattr(model, "get_correct_experts_implementation", None)
    if chosen is None or choose is None or chosen == choose(None):
        return []
    return [f"experts {chosen}"]
