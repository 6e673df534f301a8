"""A real llama-server: what it saves is read, what is built here it goes on from, and how it computes is told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvswap.core.errors import Incompatible
from kvswap.integrations import llamacpp
from kvswap.integrations.llamacpp.gguf import read_gguf
from kvswap.integrations.llamacpp.identity import gguf_identity
from kvswap.integrations.llamacpp.mapping import model_rows, slot_file_of
from kvswap.integrations.llamacpp.probe import judge
from kvswap.integrations.llamacpp.publishing import computed_sequence
from kvswap.integrations.llamacpp.remembered import environment_key, keep, recall
from kvswap.integrations.llamacpp.server import Described, LlamaServer, describe
from tests.llama.running import Server

SECONDS = 600.0
IDS = [256, *((37 * i + 11) % 256 for i in range(699))]
QUESTION = [72, 97, 10, 5, 200, 31]


def described(server: Server, model: Path) -> Described:
    return describe(LlamaServer(server.address, server.slots), read_gguf(model), gguf_identity(model))


def continuation(server: Server, ids: list[int]) -> tuple[int, list[Any]]:
    """The tokens that came from the cache, and the likeliest tokens of 16 steps with their probabilities."""
    answer = server.complete(ids, 16, n_probs=8, ignore_eos=True)
    return answer["timings"]["cache_n"], answer["completion_probabilities"]


@pytest.mark.parametrize(("name", "tokens"), [("dense", 700), ("dense", 512), ("sliding", 700), ("sliding", 96)])
def test_a_server_goes_on_from_a_state_that_was_built_of_chunks_as_from_its_own(
    server: Any, models: dict[str, Path], name: str, tokens: int
) -> None:
    running = server(models[name])
    known = described(running, models[name])
    ids = IDS[:tokens]
    talking = LlamaServer(running.address, running.slots)
    gathered = computed_sequence(talking, known, ids, SECONDS)
    own = talking.save()
    rows = [gathered.rows(layer) for layer in range(len(known.layout.layers))]
    for one, other in zip(model_rows(known.layout, own, tokens - 31, tokens), rows, strict=True):
        assert (one.keys == other.keys[-31:]).all() and (one.values == other.values[-31:]).all()
    cached, went_on = continuation(running, ids + QUESTION)
    assert cached == tokens

    talking.erase()
    window = known.layout.window
    held = [
        llamacpp.LayerRows(r.keys[-(window - 1) :], r.values[-(window - 1) :]) if spec.window and window else r
        for r, spec in zip(rows, known.layout.layers, strict=True)
    ]
    talking.restore(slot_file_of(known.layout, known.shape, ids, held))
    cached, restored = continuation(running, ids + QUESTION)
    assert cached == tokens  # and not: taken, and prefilled all the same
    if window is None:
        assert restored == went_on  # to the bit, as the probabilities are
    talking.erase()
    talking.restore(slot_file_of(known.layout, known.shape, ids, held))
    assert continuation(running, ids + QUESTION) == (tokens, restored)


def test_the_same_server_twice_is_bitwise_whatever_its_threads(server: Any, models: dict[str, Path]) -> None:
    first, second = server(models["dense"]), server(models["dense"], n_ctx=2048)
    one, other = described(first, models["dense"]), described(second, models["dense"])
    assert judge(one.probe, other.probe).claim == "bitwise" and one.layout == other.layout
    assert one.probe.version  # what it calls itself


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_freq_base": 20_000.0},
        {"rope_freq_base": 10_500.0},
        {"rope_freq_scale": 0.5},
        {"lora": True},
    ],
    ids=str,
)
def test_a_server_that_computes_something_else_is_refused(
    server: Any, models: dict[str, Path], settings: dict[str, Any]
) -> None:
    plain = described(server(models["dense"]), models["dense"])
    flags = {"lora": str(models["lora"])} if "lora" in settings else settings
    other = described(server(models["dense"], **flags), models["dense"])
    assert other.identity == plain.identity  # the file does not show it
    with pytest.raises(Incompatible, match="computes something else") as refused:
        judge(plain.probe, other.probe)
    assert refused.value.details["field"] == "engine"


def test_flash_attention_off_is_within_tolerance_and_laid_out_alike(server: Any, models: dict[str, Path]) -> None:
    plain = described(server(models["dense"]), models["dense"])
    other = described(server(models["dense"], flash_attn_type=0), models["dense"])
    assert judge(plain.probe, other.probe).claim == "tolerance"
    assert other.shape.transposed and other.layout == plain.layout


@pytest.mark.parametrize("cache_type", ["bf16", "q8_0"])
def test_another_format_of_the_cache_is_another_layout(server: Any, models: dict[str, Path], cache_type: str) -> None:
    plain = described(server(models["dense"]), models["dense"])
    other = described(server(models["dense"], cache_type_k=cache_type, cache_type_v=cache_type), models["dense"])
    assert other.layout.dtype == {"bf16": "bfloat16", "q8_0": "q8_0"}[cache_type] and other.layout != plain.layout


def test_what_is_known_of_a_server_is_kept_until_something_changes(
    server: Any, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kept"
    for name in ("dense", "sliding"):
        known, model = described(server(models[name]), models[name]), read_gguf(models[name])
        key = environment_key(known.identity, "f16")
        assert recall(folder, key, model, known.identity) is None
        keep(folder, key, known)
        assert recall(folder, key, model, known.identity) == known and known.token_seconds > 0
        assert environment_key(known.identity, "q8_0") != key
        (folder / f"{key}.server").write_bytes(b"\x83no")
        assert recall(folder, key, model, known.identity) is None
    monkeypatch.setenv("GGML_SOMETHING", "1")
    assert environment_key(known.identity, "f16") != key


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    from kvswap.core.errors import NotFound

    with pytest.raises(NotFound, match="no llama-server answers"):
        LlamaServer("http://127.0.0.1:9", tmp_path).save()
