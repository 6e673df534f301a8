"""Rotary tables that depend on how long a text is: a document stays on one side of their threshold, or is refused."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3TextConfig, LlamaConfig, Phi3Config

from kvswap.client.loading import LocalPrefill
from kvswap.core.errors import Incompatible
from kvswap.model.load import LoadedModel, load_model
from kvswap.model.prefill import PROBE_STEPS, check_reach, forward, prefill
from kvswap.worker.jobs import Jobs
from kvswap.worker.messages import AnswerJob, PublishJob
from kvswap.worker.publishing import PROBE_TEXT
from tests.support import DOCUMENT

THRESHOLD, BLOCK = 96, 32
COMMON: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FACTORS = {
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [1.0 + 7 * i for i in range(8)],
    "original_max_position_embeddings": THRESHOLD,
    "rope_theta": 10000.0,
}
LONG = {"rope_type": "longrope", **FACTORS}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
MADE = {
    "phi3": lambda: Phi3Config(
        max_position_embeddings=768, original_max_position_embeddings=THRESHOLD, rope_parameters=LONG, **COMMON
    ),
    "llama-longrope": lambda: LlamaConfig(max_position_embeddings=768, rope_parameters=LONG, head_dim=16, **COMMON),
    "gemma3-longrope": lambda: Gemma3TextConfig(
        max_position_embeddings=768,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=24,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        rope_parameters={"full_attention": LONG, "sliding_attention": PLAIN},
        **COMMON,
    ),
    "llama-dynamic": lambda: LlamaConfig(
        max_position_embeddings=THRESHOLD, rope_parameters=DYNAMIC, head_dim=16, **COMMON
    ),
}


@pytest.fixture(scope="module")
def lengths(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, LoadedModel]:
    made = {}
    for kind, config in MADE.items():
        directory = Path(shutil.copytree(tiny_models["llama"], tmp_path_factory.mktemp("lengths") / kind))
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config()).save_pretrained(directory)
        made[kind] = load_model(directory, kind, "float32")
    return made


def ids_of(loaded: LoadedModel, tokens: int) -> list[int]:
    return loaded.tokenize(DOCUMENT.read_text()[:4000])[:tokens]


def one_pass(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        out = loaded.model(input_ids=torch.tensor([ids]), past_key_values=DynamicCache(config=loaded.model.config))
    return out.logits[0, -1].float()


def stays(kind: str, tokens: int, headroom: int, block: int) -> bool:
    short = tokens + headroom <= THRESHOLD
    return short or ("dynamic" not in kind and min(block, tokens) > THRESHOLD)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(MADE)),
    tokens=st.integers(THRESHOLD - 40, THRESHOLD + 60),
    headroom=st.integers(1, 40),
    block=st.sampled_from([16, 32, 48, 96, 97, 128, 256]),
)
def test_what_stays_on_one_side_is_one_pass_and_what_crosses_is_refused(
    lengths: dict[str, LoadedModel], kind: str, tokens: int, headroom: int, block: int
) -> None:
    loaded = lengths[kind]
    ids = ids_of(loaded, tokens + headroom)
    if not stays(kind, tokens, headroom, block):
        with pytest.raises(Incompatible) as caught:
            check_reach(loaded, tokens, headroom, block)
        assert caught.value.exit_code == 7 and caught.value.details["field"] == "layout.rope"
        assert ("dynamic" if "dynamic" in kind else "longrope") in caught.value.message
        assert str(THRESHOLD) in caught.value.message
        return
    check_reach(loaded, tokens, headroom, block)
    made = forward(loaded, prefill(loaded, ids[:tokens], block, headroom), ids[tokens:], tokens)
    wanted = one_pass(loaded, ids)
    assert (made - wanted).abs().max() < 1e-4 * (wanted.max() - wanted.min())


@pytest.mark.parametrize("kind", sorted(MADE))
def test_publishing_is_refused_before_it_computes(lengths: dict[str, LoadedModel], kind: str) -> None:
    events: list[dict[str, Any]] = []
    jobs = Jobs(events.append, threading.Event())
    jobs._loaded = loaded = lengths[kind]
    after = len(loaded.tokenize_continuation(PROBE_TEXT)) + PROBE_STEPS
    text = DOCUMENT.read_text()
    for tokens in (THRESHOLD - after, THRESHOLD - after + 1, THRESHOLD + 40):
        cut = loaded.tokenizer.decode(ids_of(loaded, tokens))
        if tokens + after <= THRESHOLD:
            assert (
                jobs.do(PublishJob(text=cut, block_tokens=BLOCK, codec="raw", truncate=False)).prefix.tokens == tokens
            )
            events.clear()
        else:
            with pytest.raises(Incompatible, match="rope|dynamic"):
                jobs.do(PublishJob(text=cut, block_tokens=BLOCK, codec="raw", truncate=False))
            assert not events, "something was computed"
    done = jobs.do(
        PublishJob(text=text, block_tokens=BLOCK, codec="raw", truncate=True)
    )  # cut to what stays on one side
    assert done.prefix.tokens == (THRESHOLD - after) // BLOCK * BLOCK


@pytest.mark.parametrize("kind", sorted(MADE))
def test_question_and_answer_count(lengths: dict[str, LoadedModel], kind: str) -> None:
    jobs = Jobs(lambda _: None, threading.Event())
    jobs._loaded = loaded = lengths[kind]
    text = loaded.tokenizer.decode(ids_of(loaded, 40))
    assert len(jobs.do(AnswerJob(question="?", steps=4, block_tokens=BLOCK, text=text, ignore_eos=True)).token_ids) == 4
    with pytest.raises(Incompatible, match="rope|dynamic"):
        jobs.do(AnswerJob(question="?", steps=60, block_tokens=BLOCK, text=text))


@pytest.mark.parametrize("kind", sorted(MADE))
def test_a_prefix_in_the_callers_process(lengths: dict[str, LoadedModel], kind: str) -> None:
    loaded = lengths[kind]
    for tokens in (THRESHOLD - 1, THRESHOLD, THRESHOLD + 1):
        cut = loaded.tokenizer.decode(ids_of(loaded, tokens))
        if tokens <= THRESHOLD:
            assert LocalPrefill(cut, loaded.model, loaded.tokenizer, BLOCK).tokens == tokens
        else:
            with pytest.raises(Incompatible):
                LocalPrefill(cut, loaded.model, loaded.tokenizer, BLOCK)


def test_a_table_that_grew_in_the_callers_hands_is_set_back(lengths: dict[str, LoadedModel]) -> None:
    """Dynamic frequencies stay as the longest text left them, until a shorter one comes."""
    loaded = lengths["llama-dynamic"]
    ids = ids_of(loaded, THRESHOLD)
    text = loaded.tokenizer.decode(ids)
    wanted = LocalPrefill(text, loaded.model, loaded.tokenizer, 256).cache(8).layers[1].keys.clone()
    with torch.no_grad():
        loaded.model(input_ids=torch.tensor([ids * 3]))
    again = LocalPrefill(text, loaded.model, loaded.tokenizer, 256).cache(8).layers[1].keys
    assert torch.equal(again, wanted)


def test_sampled_positions_are_computed_with_the_documents_own_table(lengths: dict[str, LoadedModel]) -> None:
    from kvswap.model.cache import held_tensors, layer_specs
    from kvswap.model.recompute import at_positions

    loaded = lengths["phi3"]
    ids = ids_of(loaded, 160)
    cache = prefill(loaded, ids, 128)
    held = held_tensors(cache, layer_specs(cache), len(ids))
    errors = at_positions(loaded, held, len(ids), ids, [3, 40, 80])
    assert errors.shape[0] == 3 and float(errors.max()) < 1e-4


def test_other_tables_are_not_in_the_way(tiny_models: dict[str, Path]) -> None:
    loaded = load_model(tiny_models["gemma3"], "m", "float32")
    check_reach(loaded, 2000, 48, BLOCK)
