"""Rotary tables that depend on how long a text is: one is chosen for a document with room behind it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, Gemma3TextConfig, LlamaConfig, Phi3Config

from kvswap.client.loading import LocalPrefill
from kvswap.core.errors import Incompatible
from kvswap.model import reach
from kvswap.model.load import LoadedModel, load_model, rope_text
from kvswap.model.prefill import PROBE_STEPS, check_reach, forward, prefill
from kvswap.worker.jobs import Jobs
from kvswap.worker.messages import AnswerJob, OpenJob, PublishJob
from kvswap.worker.publishing import PROBE_TEXT
from tests.support import DOCUMENT
from tests.worker.test_hybrid import Feeder

THRESHOLD, BLOCK, HEADROOM = 96, 32, 24
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
def directories(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> dict[str, Path]:
    made = {}
    for kind, config in MADE.items():
        made[kind] = Path(shutil.copytree(tiny_models["llama"], tmp_path_factory.mktemp("lengths") / kind))
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(config()).save_pretrained(made[kind])
    return made


@pytest.fixture(scope="module")
def lengths(directories: dict[str, Path]) -> dict[str, LoadedModel]:
    return {kind: load_model(directory, kind, "float32") for kind, directory in directories.items()}


def ids_of(loaded: LoadedModel, tokens: int) -> list[int]:
    return loaded.tokenize(DOCUMENT.read_text()[:4000])[:tokens]


@pytest.fixture(autouse=True, scope="module")
def room() -> Iterator[None]:
    """As much as these thresholds and contexts have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach, "HEADROOM", HEADROOM)
        yield


def as_of(loaded: LoadedModel, ids: list[int], length: int) -> torch.Tensor:
    """Logits after `ids` of the model left to itself, in one pass of a text of `length` tokens that begins with them."""
    reach.pin(loaded.model, 0)
    further = ids + [7] * (length - len(ids))
    with torch.no_grad():
        out = loaded.model(input_ids=torch.tensor([further]), past_key_values=DynamicCache(config=loaded.model.config))
    return out.logits[0, len(ids) - 1].float()


def limit(kind: str) -> int:
    return THRESHOLD * 4 if "dynamic" in kind else 768


def table(kind: str, tokens: int, headroom: int) -> int:
    """What is to be chosen; 0: the table of short texts."""
    room = tokens + max(headroom, HEADROOM)
    if room <= THRESHOLD:
        return 0
    return min(limit(kind), -(-room // HEADROOM) * HEADROOM) if "dynamic" in kind else 768


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(sorted(MADE)),
    tokens=st.integers(THRESHOLD - 40, THRESHOLD + 60),
    headroom=st.integers(1, 40),
    block=st.sampled_from([16, 32, 48, 96, 97, 128, 256]),
)
def test_one_table_is_that_of_one_pass(
    lengths: dict[str, LoadedModel], kind: str, tokens: int, headroom: int, block: int
) -> None:
    loaded = lengths[kind]
    ids = ids_of(loaded, tokens + headroom)
    check_reach(loaded, tokens, headroom, block)
    chosen = table(kind, tokens, headroom)
    assert loaded.table == chosen == reach.recorded(loaded.rope())
    made = forward(loaded, prefill(loaded, ids[:tokens], block, headroom), ids[tokens:], tokens)
    wanted = as_of(loaded, ids, chosen or len(ids))
    assert (made - wanted).abs().max() < 1e-4 * (wanted.max() - wanted.min())
    other = as_of(loaded, ids, THRESHOLD + 1 if chosen == 0 else max(len(ids), THRESHOLD))
    if chosen == 0 or ("dynamic" in kind or len(ids) <= THRESHOLD) and chosen > max(len(ids), THRESHOLD):
        assert not torch.equal(other, wanted), "this model has one table"


@pytest.mark.parametrize("kind", sorted(MADE))
def test_a_question_that_crosses_the_threshold_gives_the_bits_of_prefilling(
    directories: dict[str, Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published below the threshold with room behind it, and fetched while it is computed."""
    monkeypatch.setattr(reach, "HEADROOM", 120)
    jobs = Jobs(lambda _: None, threading.Event())
    jobs.do(OpenJob(directory=str(directories[kind]), label=kind, dtype="float32", device="cpu", threads=0))
    text = jobs.loaded.tokenizer.decode(ids_of(jobs.loaded, THRESHOLD - 10))
    asked = "What does the question say that goes on beyond the threshold of the model?"
    common = {"question": asked, "steps": 20, "block_tokens": BLOCK, "ignore_eos": True}
    wanted = jobs.do(AnswerJob(**common, text=text))
    assert jobs.loaded.table and "table_tokens" in jobs.loaded.rope()
    feeder = Feeder(directories[kind], tmp_path)
    loaded = feeder.jobs.loaded
    check_reach(loaded, THRESHOLD - 10, 8, BLOCK)
    feeder.publish(text)
    assert reach.recorded(feeder.manifest.layout.rope) == loaded.table > THRESHOLD
    reach.pin(loaded.model, 0)  # a reader's model, which has not seen the document
    got = feeder.run(**{**common, "text": text})
    assert got["logits_digest"] == wanted.logits_digest and got["claim"] == "bitwise"
    assert feeder.available, "nothing was computed"
    natural = msgspec.structs.replace(feeder.manifest.layout, rope=rope_text(loaded.model.config.get_text_config()))
    with pytest.raises(Incompatible, match="cross"):  # without the record, the model's own choice crosses
        check_reach(loaded, THRESHOLD - 10, 40, BLOCK, natural.rope)


@pytest.mark.parametrize("kind", sorted(MADE))
def test_publishing_records_the_table(lengths: dict[str, LoadedModel], kind: str) -> None:
    jobs = Jobs(lambda _: None, threading.Event())
    jobs._loaded = loaded = lengths[kind]
    after = len(loaded.tokenize_continuation(PROBE_TEXT)) + PROBE_STEPS
    for tokens in (40, THRESHOLD - 1, THRESHOLD + 40):
        cut = loaded.tokenizer.decode(ids_of(loaded, tokens))
        done = jobs.do(PublishJob(text=cut, block_tokens=BLOCK, codec="raw"))
        assert done.prefix.tokens == tokens
        assert reach.recorded(done.layout.rope) == table(kind, tokens, after)
    done = jobs.do(
        PublishJob(text=DOCUMENT.read_text(), block_tokens=BLOCK, codec="raw", truncate=True)
    )  # cut to what fits the model
    assert done.prefix.tokens == (limit(kind) - after) // BLOCK * BLOCK


@pytest.mark.parametrize("kind", sorted(MADE))
def test_what_goes_beyond_its_table_is_refused(lengths: dict[str, LoadedModel], kind: str) -> None:
    loaded = lengths[kind]
    plain = rope_text(loaded.model.config.get_text_config())
    with pytest.raises(Incompatible, match=str(THRESHOLD)) as caught:  # short factors, and a question beyond them
        check_reach(loaded, 40, 60, BLOCK, plain)
    assert caught.value.exit_code == 7 and caught.value.details["field"] == "layout.rope"
    if "dynamic" in kind:
        with pytest.raises(Incompatible, match="120 tokens"):
            check_reach(loaded, 100, 30, BLOCK, rope_text(loaded.model.config.get_text_config(), 120))
    with pytest.raises(Incompatible, match="has not"):  # a length that the model never gets to
        check_reach(loaded, 100, 30, BLOCK, rope_text(loaded.model.config.get_text_config(), 1 << 40))


@pytest.mark.parametrize("rope", ["null", "{", "[1]", '{"table_tokens": true}', '{"table_tokens": "9"}',
                                  '{"table_tokens": -1}', "[" * 4000])  # fmt: skip
def test_no_length_is_recorded_by_other_words(rope: str) -> None:
    assert reach.recorded(rope) == 0


def test_a_table_of_a_model_with_one_is_refused(tiny_models: dict[str, Path]) -> None:
    loaded = load_model(tiny_models["llama"], "m", "float32")
    with pytest.raises(Incompatible, match="has not"):
        check_reach(loaded, 40, 8, BLOCK, '{"table_tokens": 512}')
    with pytest.raises(Incompatible, match="shorter"):  # an engine that has one table
        reach.require_own(None, '{"table_tokens": 512}', 40, BLOCK)


@pytest.mark.parametrize("kind", sorted(MADE))
def test_a_prefix_in_the_callers_process(lengths: dict[str, LoadedModel], kind: str) -> None:
    loaded = lengths[kind]
    for tokens in (THRESHOLD - 1, THRESHOLD, THRESHOLD + 1):
        cut = loaded.tokenizer.decode(ids_of(loaded, tokens))
        if tokens <= THRESHOLD or "dynamic" not in kind:
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
