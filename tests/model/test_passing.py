"""A model takes its cache by the name of its class: Mamba 2 says `cache_params`, all others `past_key_values`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvswap.integrations.transformers import inputs_after
from kvswap.model.load import load_model
from kvswap.model.passing import cache_argument
from kvswap.model.prefill import Hooks, greedy, prefill
from tests.families import build

TEXT = "Some text that is long enough for two blocks of sixteen tokens, and for a few tokens more than these."


@pytest.mark.parametrize(("family", "name"), [("llama", "past_key_values"), ("mamba2", "cache_params")])
def test_a_cache_is_passed_by_the_name_that_the_class_has(tmp_path: Path, family: str, name: str) -> None:
    loaded = load_model(build(tmp_path / family, family), family, "float32")
    assert cache_argument(loaded.model) == name
    ids = loaded.tokenize(TEXT)
    after, alone = prefill(loaded, ids, 16), prefill(loaded, ids[-1:], 16)
    right = greedy(loaded, after, len(ids), [5, 9], 4)
    assert right.logits_digest != greedy(loaded, alone, 1, [5, 9], 4).logits_digest


def test_generate_goes_on_after_states_alone(tmp_path: Path) -> None:
    loaded = load_model(build(tmp_path / "model", "mamba2"), "mamba2", "float32")
    ids, question = loaded.tokenize(TEXT), loaded.tokenize_continuation(" What?")
    logits: list[torch.Tensor] = []
    greedy(loaded, prefill(loaded, ids, 16), len(ids), question, 3, hooks=Hooks(on_logits=logits.append))
    cache = prefill(loaded, ids, 16)
    done = loaded.model.generate(
        **inputs_after(TEXT, " What?", loaded.tokenizer, cache),
        max_new_tokens=3,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(torch.cat(done.logits), torch.stack(logits))
