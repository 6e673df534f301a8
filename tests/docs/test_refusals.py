"""What the code refuses of a model stands in the docs: each function that refuses one has its words there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT

CODE = (
    "kvswap/model",
    "kvswap/integrations/vllm",
    "kvswap/integrations/transformers.py",
    "kvswap/client/loading.py",
    "kvswap/worker/training.py",
)
LIMITS, VLLM, QUANTISED, SECURITY = "limits.md", "vllm.md", "quantised.md", "security.md"
AGENTS = "agents.md"
# Where it refuses: (page, words on that page).
SAID = {
    "client/loading.live_identity": (LIMITS, "offloaded"),
    "client/loading.load_for": (LIMITS, "an artifact of another model"),
    "integrations/transformers.inputs_after": (LIMITS, "an artifact of another model"),
    "integrations/vllm/capture.__init__": (VLLM, "does not publish"),
    "integrations/vllm/engine._check_files": (VLLM, "identity is of these files"),
    "integrations/vllm/engine._check_quantised": (VLLM, "quantises itself while it loads are refused"),
    "integrations/vllm/engine._refuse_states": (VLLM, "states (linear attention, Mamba"),
    "integrations/vllm/engine._require": (VLLM, "pipeline and context parallelism"),
    "integrations/vllm/engine.check": (LIMITS, "an artifact of another model"),
    "integrations/vllm/engine.model_directory": (VLLM, "identity is of these files"),
    "integrations/vllm/paged.__init__": (VLLM, "attention backend"),
    "integrations/vllm/paged.learn": (VLLM, "attention backend"),
    "integrations/vllm/tables.check_latent_keys": (VLLM, "rotates a latent's key wrongly"),
    "integrations/vllm/tables.check_tables": (VLLM, "tables of cos and sin"),
    "model/adapters._tensors": (LIMITS, "Other kinds of adapters"),
    "model/adapters._unknown": (LIMITS, "Other kinds of adapters"),
    "model/adapters.adapter_in": (LIMITS, "Other kinds of adapters"),
    "model/adapting._refused": (LIMITS, "Other kinds of adapters"),
    "model/adapting.require_peft": (LIMITS, "brings `peft`"),
    "model/cache.build_cache": (LIMITS, "an artifact of another model"),
    "model/cache.check_layers": (LIMITS, "a window below two tokens, or whose first layer keeps nothing"),
    "model/cache.layer_specs": (LIMITS, "of a batch"),
    "model/chat._before": (LIMITS, "a tokenizer that puts special tokens into a text"),
    "model/chat.read_format": (LIMITS, "missing, damaged"),
    "model/chat.render": (AGENTS, "does not begin with the token that its tokenizer puts before every text"),
    "model/families.check": (LIMITS, "`auto_map`"),
    "model/families.layers_of_config": (LIMITS, "quantised, compressed"),
    "model/files.check_experts": (LIMITS, "of another shape"),
    "model/files.not_a_pointer": (LIMITS, "Git LFS pointers"),
    "model/files.unfit": (LIMITS, "missing, damaged"),
    "model/finite.not_finite": (LIMITS, "not finite"),
    "model/layers.spec_of": (LIMITS, "quantised, compressed"),
    "model/live._differs": (LIMITS, "fine-tuned, cast, hooked"),
    "model/live._directory": (LIMITS, "what their directory loads as"),
    "model/load._behind": (LIMITS, "a tokenizer that puts special tokens into a text"),
    "model/load.load_model": (LIMITS, "changed while they are read"),
    "model/opening._configuration": (LIMITS, "`auto_map`"),
    "model/opening._not_installed": (LIMITS, "a package that is not installed"),
    "model/precision.check": (LIMITS, "autocast, TF32"),
    "model/probing._check_far": (LIMITS, "in a way that kvswap does not know"),
    "model/probing._check_states": (LIMITS, "forget it between passes"),
    "model/probing._refused": (LIMITS, "elsewhere than in the cache they are given"),
    "model/quantisation._refused": (QUANTISED, "refused by name before weights are read"),
    "model/reach._crossed": (LIMITS, "one table of frequencies"),
    "model/reach.check_table": (LIMITS, "one table of frequencies"),
    "model/reach.require_own": (LIMITS, "refuse an artifact of the other table"),
    "model/readback.read_document": (LIMITS, "layer 0 does not tell its tokens"),
    "model/recompute.at_positions": (SECURITY, "keep too little to compute one position"),
    "model/recompute.first_layer": (LIMITS, "elsewhere than in the cache they are given"),
    "model/shape.require_layers": (LIMITS, "an artifact of another model"),
    "model/states.number": (LIMITS, "missing, damaged"),
    "worker/training._stacks": (LIMITS, "without a layer that keeps keys and values of all of a text"),
}


def refusing() -> Iterator[str]:
    files = [
        file for place in CODE for file in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    ]
    for file in files:
        name = file.relative_to(ROOT / "kvswap").with_suffix("").as_posix()
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
                if any(isinstance(called, ast.Name) and called.id == "Incompatible" for called in calls):
                    yield f"{name}.{function.name}"


def test_every_refusal_of_a_model_stands_in_the_docs() -> None:
    assert set(refusing()) == set(SAID)
    pages = {page: " ".join((ROOT / "docs" / page).read_text().split()) for page in {page for page, _ in SAID.values()}}
    assert [where for where, (page, words) in SAID.items() if words not in pages[page]] == []


def test_types_that_are_refused_stand_on_the_page_of_limits() -> None:
    from kvswap.model.families import FAMILIES

    limits = (Path(ROOT) / "docs" / LIMITS).read_text().replace("\n", " ")
    refused = [family for family in FAMILIES.values() if family.refused]
    assert refused and [family.names for family in refused if family.names not in limits] == []
